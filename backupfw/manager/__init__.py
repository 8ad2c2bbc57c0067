"""The rules of the service, as transactions on the database; no byte of a volume is known here.

Rooms, from the top down; each may use those below it:

* :mod:`~backupfw.manager.usecases`: what the API is asked to do.
* :mod:`~backupfw.manager.outcomes`: what a worker reports, and what becomes of tasks.
* :mod:`~backupfw.manager.operators`: what operators ask.
* :mod:`~backupfw.manager.rules`: what is allowed, and what follows from it.
* :mod:`~backupfw.manager.queue`: which task runs next, and where.
* :mod:`~backupfw.manager.lineage`: states, and which manifests share objects.

Beside them lies what all use: frozen records of rows (``rows``), export records (``records``), metadata,
listings and user messages.
"""
