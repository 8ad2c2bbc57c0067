"""Commands of the ``openstack`` client for what backupfw adds to the Block Storage backups API.

``service.py`` calls the service; ``backups.py``, ``copies.py`` and ``policies.py`` have the commands, which
``pyproject.toml`` registers.  Authentication, regions, endpoints and versions are openstackclient's: every
call goes through its connection.
"""
