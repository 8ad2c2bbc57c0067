"""How Sphinx builds these pages (``make docs``); they are plain Markdown and read well without it."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer

sys.path.insert(0, str(Path(__file__).parents[1]))

import backupfw

project = "backupfw"
copyright = "the backupfw authors"  # noqa: A001  (Sphinx's name)
release = version = backupfw.__version__
extensions = ["cliff.sphinxext", "myst_parser"]
# 'make man' writes this page, which is checked in: it must not change from day to day.
man_pages = [
    ("commands", "backupfw", "back up block volumes to chunk stores", ["the backupfw authors"], 1),
]
today = f"backupfw {release}"
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Backups of block volumes, with plug-in stores", "fixed_sidebar": True}


def setup(app):
    """Show diagrams as text where nothing draws them."""
    app.add_lexer("mermaid", TextLexer)
