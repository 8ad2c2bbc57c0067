"""Who asks: one WSGI layer per ``[api] auth_strategy`` that puts a RequestContext into the environment."""

from __future__ import annotations

#: Where the context stands in the WSGI environment.
CONTEXT = "backupfw.context"
