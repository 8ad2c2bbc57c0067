"""Key stores: where the keys of projects are, which wrap the keys of their backups.

A leaf beside ``chunkstore`` and ``volume``.  The drivers of key stores import only this package.
"""
