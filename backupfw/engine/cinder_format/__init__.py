"""Cinder's layout of backups in a store: read beside ours (``engine/format``), and written.

A backup is one *link*: data objects, a list of hashes and ``_metadata``, all under one prefix.  An
incremental backup needs its parent, that one its own, up to a full one: the *chain*.  ``docs/format.md`` says
what is read and what is checked.
"""
