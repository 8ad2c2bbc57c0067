"""The steps of the schema, oldest first; run by ``backupfw.db.migrate``."""
