"""The rules of the service, as transactions on the database; it never handles the bytes of a volume.

Packages, from the top down; each may use those below it:

* :mod:`~backupfw.manager.usecases`: the use cases of the API.
* :mod:`~backupfw.manager.outcomes`: the outcomes of tasks, as workers report them.
* :mod:`~backupfw.manager.operators`: audit and purge.
* :mod:`~backupfw.manager.rules`: which operations are allowed, and their consequences.
* :mod:`~backupfw.manager.queue`: which task runs next, and where.
* :mod:`~backupfw.manager.lineage`: states, and which manifests share objects.

Beside them are modules that all of them use: frozen records of rows (``rows``), export records (``records``),
metadata, listings and user messages.
"""
