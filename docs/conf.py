"""How Sphinx builds these pages (``make docs``); they are plain Markdown and read well without it."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer

sys.path.insert(0, str(Path(__file__).parents[1]))

import backupfw

project = "backupfw"
copyright = "the backupfw authors"  # noqa: A001  (Sphinx's name)
release = version = backupfw.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Backups of block volumes, with plug-in stores", "fixed_sidebar": True}


def setup(app):
    """Show diagrams as text where nothing draws them."""
    app.add_lexer("mermaid", TextLexer)
