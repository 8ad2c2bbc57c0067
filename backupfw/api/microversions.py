"""The microversions of v3 that change anything here, one line each.

What is not listed concerns things this service does not have (images, servers,
clusters), so a request in such a version is one in the version before it.  v2 is older than all of them.
"""

from __future__ import annotations

from backupfw.api.versions import V3, ApiVersion

BASE_VERSION = V3  # everything v2 has, and nothing else
MESSAGES = ApiVersion(3, 3)  # /messages: what failed after it was accepted
MESSAGES_PAGINATION = ApiVersion(3, 5)  # their listing has filters, order and pages
SERVICE_CLUSTER = ApiVersion(3, 7)  # services show a cluster: null, there are none
BACKUP_UPDATE = ApiVersion(3, 9)  # PUT /backups/{id} changes name and description
VOLUME_SUMMARY = ApiVersion(3, 12)  # GET /volumes/summary
VOLUME_GROUP = ApiVersion(3, 13)  # volumes show a group: null, there are none
SNAPSHOT_GROUP = ApiVersion(3, 14)  # snapshots show a group's snapshot: null, there are none
BACKUP_PROJECT = ApiVersion(3, 18)  # backups show their project, to whom the policy lets see it
VOLUME_PROVIDER_ID = ApiVersion(3, 21)  # volumes show a provider's id, to administrators: null
VOLUME_DELETE_FORCE = ApiVersion(3, 23)  # DELETE /volumes/{id}?force=True, for administrators
RESOURCE_FILTER = ApiVersion(3, 31)  # filters are the operator's choice; a member's other one is 400
RESOURCE_FILTER_CONFIG = ApiVersion(3, 33)  # GET /resource_filters tells that choice
LIKE_FILTER = ApiVersion(3, 34)  # name~=part, where the operator lists name~; administrators always
VOLUME_SUMMARY_METADATA = ApiVersion(3, 36)  # the summary has the metadata of all volumes
BACKUP_SORT_NAME = ApiVersion(3, 37)  # backups can be sorted by name
LIMITS_OF_PROJECT = ApiVersion(3, 39)  # GET /limits?project_id of another project, for administrators
SNAPSHOT_USER_ID = ApiVersion(3, 41)  # snapshots show who made them
BACKUP_METADATA = ApiVersion(3, 43)  # metadata of backups: create, update, show
COUNT_INFO = ApiVersion(3, 45)  # with_count=True adds how many there are without paging
VOLUME_FROM_BACKUP = ApiVersion(3, 47)  # POST /volumes with backup_id
VOLUME_SHARED_TARGETS = ApiVersion(3, 48)  # volumes show shared_targets: false, and service_uuid: null
BACKUP_AZ = ApiVersion(3, 51)  # POST /backups with availability_zone
TRANSFERS = ApiVersion(3, 55)  # /volume-transfers, as /os-volume-transfer in every version; no_snapshots
BACKUP_USER_ID = ApiVersion(3, 56)  # backups show who made them, by the policy of 3.18
TRANSFER_PROJECTS = ApiVersion(3, 57)  # transfers show from which project to which
VOLUME_CLUSTER_NAME = ApiVersion(3, 61)  # volumes show a cluster to administrators: null
DEFAULT_TYPES = ApiVersion(3, 62)  # /default-types: the type of a project's new volumes
VOLUME_TYPE_ID = ApiVersion(3, 63)  # volumes show their type's id
ENCRYPTION_KEY_ID = ApiVersion(3, 64)  # backups show their key's id, if they have one
CONSUMES_QUOTA = ApiVersion(3, 65)  # volumes and snapshots show whether they count: true
SNAPSHOT_IN_USE = ApiVersion(3, 66)  # a volume in use can be snapshotted without force
PROJECT_ID_OPTIONAL = ApiVersion(3, 67)  # /v3/backups without a project; served in every version
