"""``backupfw serve``, ``api`` and ``worker``: the commands that serve until a signal stops them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from backupfw.cmd import base

if TYPE_CHECKING:
    from oslo_config import cfg


class _ApiServer(base.Command):
    """A command that listens."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--listen", metavar="ADDRESS", help="address to listen on ([api] listen)")
        parser.add_argument("--port", metavar="N", help="TCP port to listen on, 0 for any ([api] port)")


class Serve(_ApiServer):
    """Serve the API and run a worker, in one process on one state directory."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Serve until a signal comes."""
        serve(parsed_args)


class Api(_ApiServer):
    """Serve the API only."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Serve until a signal comes."""
        run_api(parsed_args)


class Worker(base.Command):
    """Run a worker only."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Work until a signal comes."""
        run_worker(parsed_args)


def _overrides(args: argparse.Namespace) -> list[tuple[str, str, object]]:
    given = (("listen", args.listen), ("port", args.port))
    return [("api", name, value) for name, value in given if value is not None]


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal comes; prints one line when the API answers."""
    from backupfw.cmd.configure import load
    from backupfw.cmd.reload import reloader
    from backupfw.cmd.signals import until_stopped
    from backupfw.conf import api, embedded, logging

    overrides = _overrides(args)
    # It uses only the files that it was given, and records them for the other commands.
    loaded = load(args, overrides, remembered=False)
    conf = loaded.conf
    api.check_listen(conf)
    logging.setup(conf)
    from backupfw.api import app
    from backupfw.cmd import database, service

    # Report this error before anything is made.
    app.check(conf)
    with (
        until_stopped(reloader(args, overrides, conf), conf.backup.stop_seconds) as stop,
        database.only_service(conf.state_dir),
    ):
        # While we hold the lock, no other service runs on the directory.
        database.prepare(conf, make=True, upgrade=True)
        embedded.remember(conf.state_dir, args.config_file, loaded.embedded)
        token = service.console_token(conf)
        with service.EmbeddedService(conf, token) as running:
            print(f"backupfw ready on {running.url} (state {conf.state_dir})", flush=True)
            _tell_console(conf, running.url, token)
            stop.wait()


def _tell_console(conf: cfg.ConfigOpts, url: str, token: str | None) -> None:
    """Print where the console is; only this line has the token with which users log in."""
    if conf.console.enabled:
        print(f"backupfw console on {url}console/" + (f" (token {token})" if token else ""), flush=True)


def run_api(args: argparse.Namespace) -> None:
    """Serve the API until a signal comes."""
    from backupfw.cmd.configure import load
    from backupfw.cmd.reload import reloader
    from backupfw.cmd.signals import until_stopped
    from backupfw.conf import api, logging

    overrides = _overrides(args)
    conf = load(args, overrides).conf
    api.check_listen(conf)
    logging.setup(conf)
    from backupfw.api import app
    from backupfw.cmd import database, service

    # Report this error before anything is made.
    app.check(conf)
    with until_stopped(reloader(args, overrides, conf), conf.backup.stop_seconds) as stop:
        database.prepare(conf)
        token = service.console_token(conf)

        def ready(url: str) -> None:
            print(f"backupfw api ready on {url}", flush=True)
            _tell_console(conf, url, token)

        service.run_api(conf, stop, ready, token)


def run_worker(args: argparse.Namespace) -> None:
    """Run worker processes until a signal comes; prints a line when each takes tasks."""
    from backupfw.cmd.configure import load
    from backupfw.cmd.reload import reloader
    from backupfw.conf import logging

    conf = load(args).conf
    logging.setup(conf)
    from backupfw.cmd import database, processes

    # Report a missing database before the state directory is made.
    database.require_made(conf)
    with database.only_service(conf.state_dir, shared=True):
        database.prepare(conf)
        processes.run(conf, reloader(args, (), conf))
