# Every target sets itself up: the first one that runs makes .venv from constraints.txt.
# 'make' alone lists the targets.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Distributions of this checkout; each is installed beside core.
DRIVERS := posix s3 swift gcs rbd nbd cinder castellan
PARTS := $(DRIVERS:%=drivers/%) clients/python-backupfwclient
SHORT := not soak and not chaos and not fuzz
QUICK := -m 'not check and $(SHORT)'
# Tests of one class or module run in one process, with the servers that they share; conftest.py says in how many.
PYTEST := -m pytest -n auto --dist loadscope --no-loadscope-reorder
# What shows that a version works; the rest of tests/architecture is about the checkout.
LOWEST := tests/unit tests/functional tests/integration tests/architecture/test_private_parts.py $(PARTS:%=%/tests)
# Tests start hundreds of processes, which would each compile everything again.
test check: export PYTHONDONTWRITEBYTECODE =
STATE_DIR ?= .state
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-recovery test check bench serve soak chaos fuzz coverage mutants lint types arch genconfig genpolicy openapi man docs dist installed lowest constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(VENV)/.stamp: setup.cfg pyproject.toml constraints.txt $(PARTS:%=%/pyproject.toml)
	@echo "== Making $(VENV) with $(PYTHON): backupfw, its drivers ($(DRIVERS)), its client and the tools, as constraints.txt pins them"
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: $(PYTHON) is missing, older than 3.11 or without venv (Debian: apt-get install python3.11-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools
	@# Setuptools warns about every editable install.
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt \
	    -e '.[test,lint,docs,dist]' $(PARTS:%=-e %)
	@touch $@

setup: $(VENV)/.stamp ## make the virtual environment

demo: $(VENV)/.stamp ## back up, change, delete, restore and compare a real volume
	@echo "== Demo: a service of its own in a temporary directory, and a client that checks every byte"
	@$(BIN)/python demo/demo.py $(ARGS)

demo-recovery: $(VENV)/.stamp ## lose a service with all but its store, get it back and compare every byte
	@echo "== Demo: a service of its own in a temporary directory, of which only the store is kept"
	@$(BIN)/python demo/recovery.py $(ARGS)

serve: $(VENV)/.stamp ## serve API and worker in one process; state in STATE_DIR (.state)
	@echo "== Serving on http://127.0.0.1:8776/ with state in $(STATE_DIR); Ctrl-C stops it"
	@$(BIN)/backupfw serve --state-dir $(STATE_DIR) $(ARGS)

test: $(VENV)/.stamp ## run the tests that need no server
	@echo "== Tests"
	@$(BIN)/python $(PYTEST) $(QUICK) $(ARGS)

check: $(VENV)/.stamp ## run all other tests; those of servers that are not installed are skipped
	@echo "== Tests with servers and whole services"
	@$(BIN)/python $(PYTEST) -m 'check and $(SHORT)' $(ARGS)

soak: $(VENV)/.stamp ## run the long variants of the tests
	@echo "== Long tests"
	@$(BIN)/python -m pytest -m soak $(ARGS)

chaos: $(VENV)/.stamp ## kill everything at random for ten minutes, on real servers
	@echo "== Chaos: $${BACKUPFW_CHAOS_SECONDS:-600} seconds"
	@$(BIN)/python -m pytest -m chaos -s $(ARGS)

fuzz: $(VENV)/.stamp ## read bytes that were changed at random for ten minutes
	@echo "== Fuzzing: $${BACKUPFW_FUZZ_SECONDS:-600} seconds"
	@$(BIN)/python -m pytest -m fuzz -s $(ARGS)

coverage: $(VENV)/.stamp ## measure what the tests of make test run, per package, into docs/coverage.md
	@echo "== Coverage"
	@rm -rf .coverage
	@$(BIN)/python -m coverage run $(PYTEST) $(QUICK) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage json --quiet -o .coverage/report.json
	@$(BIN)/python -m tests.coverage_table .coverage/report.json docs/coverage.md
	@cat docs/coverage.md

mutants: $(VENV)/.stamp ## change code that must not be wrong, and see that tests notice; hours
	@echo "== Mutants"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[mutants]'
	@$(BIN)/python -m tests.mutants $(ARGS)

bench: $(VENV)/.stamp ## measure, beside the bare loops
	@echo "== Benchmarks"
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.stamp ## ruff: rules and format; hadolint: the Containerfile
	@echo "== ruff, hadolint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/hadolint Containerfile

types: $(VENV)/.stamp ## mypy --strict on core, the drivers, the client and the benchmarks
	@echo "== mypy"
	@$(BIN)/mypy

arch: $(VENV)/.stamp ## import-linter: the arrows of docs/architecture.md
	@echo "== import-linter"
	@$(BIN)/lint-imports

genconfig: $(VENV)/.stamp ## write etc/backupfw/backupfw.conf.sample from the options
	@echo "== etc/backupfw/backupfw.conf.sample"
	@$(BIN)/oslo-config-generator --config-file etc/backupfw/config-generator.conf

genpolicy: $(VENV)/.stamp ## write etc/backupfw/policy.yaml.sample from the rules
	@echo "== etc/backupfw/policy.yaml.sample"
	@$(BIN)/oslopolicy-sample-generator --config-file etc/backupfw/policy-generator.conf

openapi: $(VENV)/.stamp ## write docs/openapi from the routes and schemas
	@echo "== docs/openapi"
	@$(BIN)/python -m backupfw.cmd.reference docs/openapi

man: $(VENV)/.stamp ## write docs/man/backupfw.1 from the commands
	@echo "== docs/man/backupfw.1"
	@$(BIN)/python -m tests.architecture.man docs/man

docs: man ## build docs/ into docs/_build, and the man page; warnings are errors
	@echo "== docs/_build/index.html"
	@$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

dist: $(VENV)/.stamp ## build sdists and wheels of core, the drivers and the client into dist/
	@echo "== dist/"
	@rm -rf dist
	@# Each wheel is made of its sdist, so that what the sdist lacks is noticed.
	@for part in . $(PARTS); do \
	    $(BIN)/python -m build --no-isolation --outdir dist $$part >dist.log 2>&1 || { cat dist.log; exit 1; }; \
	done; rm dist.log; ls dist

installed: dist ## install dist/ into a clean environment outside the checkout, and run it
	@echo "== What dist/ holds, installed"
	@$(BIN)/python -m tests.installed dist

lowest: ## run the tests of all parts with the lowest versions that setup.cfg and the parts allow
	@echo "== Lowest versions"
	@$(PYTHON) -m venv $(VENV).lowest
	@$(VENV).lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(VENV).lowest/bin/uv pip install --quiet --python $(VENV).lowest/bin/python --resolution lowest-direct \
	    -e '.[test]' $(PARTS:%=-e %)
	@$(VENV).lowest/bin/python $(PYTEST) $(QUICK) $(LOWEST) $(ARGS)

constraints: ## pin the newest versions anew in constraints.txt
	@rm -rf $(VENV).new
	@$(PYTHON) -m venv $(VENV).new
	@$(VENV).new/bin/python -m pip install --quiet --upgrade pip setuptools
	@PYTHONWARNINGS=ignore $(VENV).new/bin/python -m pip install --quiet --no-build-isolation -e '.[test,lint,docs,dist,mutants]' $(PARTS:%=-e %) tox uv
	@{ sed -n '/^#/p;/^[^#]/q' constraints.txt; \
	   $(VENV).new/bin/python -m pip freeze --all --exclude-editable; } > constraints.new
	@mv constraints.new constraints.txt
	@rm -rf $(VENV).new

clean: ## remove what the targets made
	rm -rf $(VENV) $(VENV).lowest $(VENV).new .coverage .mutants dist.log constraints.new .tox dist build drivers/*/build clients/*/build .state .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis docs/_build
