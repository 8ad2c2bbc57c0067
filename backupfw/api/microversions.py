"""The microversions of v3 that change anything here, one line each.

What is not listed concerns things this service does not have (images, servers, groups, transfers,
clusters), so a request in such a version is one in the version before it.  v2 is older than all of them.
"""

from __future__ import annotations

from backupfw.api.versions import V3, ApiVersion

BASE_VERSION = V3  # everything v2 has, and nothing else
BACKUP_UPDATE = ApiVersion(3, 9)  # PUT /backups/{id}
PROJECT_ID_OPTIONAL = ApiVersion(3, 67)  # /v3/backups without a project; served in every version
