"""Configuration: one module per option group.  Nothing is registered at import time, nothing is global.

Each module has ``register_opts(conf)`` and ``list_opts()``; :func:`backupfw.conf.load.load` puts them
together into a private ``ConfigOpts`` and refuses wrong values.  Options of plug-ins (chunk store drivers,
layers, volume providers) come from the plug-ins themselves; ``backupfw.cmd`` passes them in.
"""
