"""Options: secrets, and the table in the README."""

from __future__ import annotations

from pathlib import Path

from backupfw_cinder.provider import CinderProvider

from backupfw.testing.readme import require_options_table

README = Path(__file__).parents[1] / "README.md"


def test_secrets_are_declared() -> None:
    secret = {opt.dest for opt in CinderProvider.options() if opt.secret}
    assert secret == {"password", "application_credential_secret"}


def test_no_option_is_needed_by_name() -> None:
    """What is needed depends on ``auth_type``; it is checked when the back end is opened."""
    assert not any(opt.required for opt in CinderProvider.options())


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, CinderProvider.options())
