"""The errors of the core, as one tree.  No HTTP here: ``api/faults.py`` maps them.

::

    BackupfwError
     +- ConfigError              a wrong option: names section and option
     +- InvalidInput             a request value that no schema could refuse
     +- InvalidBackup            the backup's state forbids the call
     +- InvalidVolume            the volume's state or size forbids the call
     +- InvalidSnapshot          the snapshot's state forbids the call
     +- NotFound
     |   +- BackupNotFound  VolumeNotFound  SnapshotNotFound  MarkerNotFound
     |   +- BackupPolicyNotFound
     |   +- AttachmentNotFound  MessageNotFound  KeyNotFound (a metadata key)  VolumeTypeNotFound
     +- Conflict                 there is one like it already
     +- Forbidden                the caller's roles do not allow it
     +- QuotaExceeded            a project's limit is reached
     +- OperationNotSupported    the store or provider cannot do it
     +- ServiceUnavailable       no live worker
     |   +- DatabaseUnwritable   the database's disk is full, or it is read-only
     +- TaskStopped              the running task must end now
     |   +- TaskCancelled        somebody asked for it (force delete, reset, shutdown)
     |   +- TaskLost             its lease or attempt is not ours any more
     |       +- OutcomeUnknown   ... and what was sent last may have been done before
     +- EngineError
         +- UnsupportedFormat    unknown version or required feature
         +- DataKeyMissing       an object is encrypted with a data key that cannot be used here
         +- Damaged              stored bytes are missing or not what was promised
         +- AttemptInVain        the attempt cannot end well, without a fault of its own
         |   +- ListingBehind    a listing does not show yet what was put before
         |   +- StillLocked      a lock of the store keeps what is to be deleted
         |   +- TrustWithdrawn   the storage that it relied on was found to be wrong
         +- JournalLost          the database lost finished segments that were recorded
         +- SourceMoved          a source that could not be read in one state
         +- SourceUnreadable     a source that could not be read at all
         +- ChangeMissed         a storage said that a range is unchanged, or zero, and it is not
         +- StorageChanged       a volume's storage is not what the catalogue says
         +- TargetError          the volume could not be written

Errors of chunk stores are a tree of their own (``chunkstore/errors.py``).
"""

from __future__ import annotations

from datetime import datetime


class BackupfwError(Exception):
    """Base of every error of the core; ``str(error)`` is fit for the user.

    :ivar may_pass: whether another attempt of the task, later, may succeed where this one failed.  It is set
        where the error is made, and the worker reads it.
    """

    may_pass: bool = False


class ConfigError(BackupfwError):
    """A configuration value is wrong; the message names section, option and what is allowed."""


class InvalidInput(BackupfwError):
    """A value in the request is wrong; the message names the field."""


class InvalidBackup(BackupfwError):
    """The backup is not in a state that allows the call."""


class InvalidVolume(BackupfwError):
    """The volume is not in a state, or not of a size, that allows the call."""


class InvalidSnapshot(BackupfwError):
    """The snapshot is not in a state that allows the call."""


class NotFound(BackupfwError):
    """No resource with this id exists, or this caller cannot see it."""

    noun = "Resource"

    def __init__(self, resource_id: str) -> None:
        super().__init__(f"{self.noun} {resource_id} could not be found.")
        self.resource_id = resource_id


class BackupNotFound(NotFound):
    """No such backup."""

    noun = "Backup"


class VolumeNotFound(NotFound):
    """No such volume."""

    noun = "Volume"


class SnapshotNotFound(NotFound):
    """No such snapshot."""

    noun = "Snapshot"


class BackupPolicyNotFound(NotFound):
    """No such backup policy."""

    noun = "Backup policy"


class MarkerNotFound(NotFound):
    """The paging marker names nothing."""

    noun = "Marker"


class AttachmentNotFound(NotFound):
    """No such attachment."""

    noun = "Attachment"


class MessageNotFound(NotFound):
    """No such user message."""

    noun = "Message"


class VolumeTypeNotFound(NotFound):
    """No such volume type."""

    noun = "Volume type"


class KeyNotFound(NotFound):
    """No such metadata key."""

    noun = "Metadata key"


class Conflict(BackupfwError):
    """What shall be made is there already."""


class Forbidden(BackupfwError):
    """The caller's roles do not allow the call."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"Policy doesn't allow {rule} to be performed.")
        self.rule = rule


class QuotaExceeded(BackupfwError):
    """A project's limit is reached.

    :param resource: the quota key, e.g. ``backups`` or ``backup_gigabytes``.
    :param message: the text clients know for it.
    :param excess: by how much the limit would be exceeded, if that is known.
    """

    def __init__(self, resource: str, message: str, excess: int = 0) -> None:
        super().__init__(message)
        self.resource = resource
        self.excess = excess


class OperationNotSupported(BackupfwError):
    """The store or volume provider cannot do this."""


class ServiceUnavailable(BackupfwError):
    """No live worker can do this now."""


class DatabaseUnwritable(ServiceUnavailable):
    """The database cannot be written; the message says why, without its address."""

    may_pass = True


class TaskStopped(BackupfwError):
    """The running task must end now; another attempt or transaction decides its outcome."""


class TaskCancelled(TaskStopped):
    """The task was cancelled: force delete, status reset or shutdown."""


class TaskLost(TaskStopped):
    """Another attempt owns the task, or may own it: nothing more may be written."""


class OutcomeUnknown(TaskLost):
    """Another attempt owns the task, and may continue from this one's records, which must stay."""


class EngineError(BackupfwError):
    """The data path failed."""


class UnsupportedFormat(EngineError):
    """An object has a format version or required feature this release does not know."""


class DataKeyMissing(EngineError):
    """What is stored is encrypted with a data key that cannot be used here.

    :param key_id: the data key's id.
    :param why: why not, without any secret.
    """

    def __init__(self, key_id: str, why: str = "it is not here") -> None:
        super().__init__(f"The backup is encrypted with the data key {key_id}: {why}.")
        self.key_id = key_id


class Damaged(EngineError):
    """Stored bytes are missing, unreadable for good, or not what was promised.

    :param store: the configured store's name.
    :param container: the container.
    :param key: the object's key.
    :param reason: what is wrong, without any credential.
    """

    def __init__(self, store: str, container: str, key: str, reason: str) -> None:
        super().__init__(f"object {key} in container {container} of store {store}: {reason}")
        self.store = store
        self.container = container
        self.key = key
        self.reason = reason


class AttemptInVain(EngineError):
    """The attempt cannot end well now, which is no failure: the task is given back, and it does not count.

    :ivar seconds: until the next attempt may begin.
    """

    seconds = 0.0


class TakesTurns(AttemptInVain):
    """Copies to a container and removals there take turns, volume by volume; the other one works now."""

    seconds = 2.0


class ListingBehind(AttemptInVain):
    """A listing may not show yet all objects from before this process's start, so nothing may be deleted.

    It is no failure: the same work succeeds later.

    :param seconds: the time until then.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("The store's listings do not show yet everything that was stored before.")
        self.seconds = seconds


class StillLocked(AttemptInVain):
    """The data is locked in its store, so it cannot be deleted yet.

    :param until: naive UTC.
    :param seconds: the time until then.
    """

    def __init__(self, until: datetime, seconds: float) -> None:
        super().__init__(f"The backup's data is locked in its store until {until:%Y-%m-%d %H:%M} UTC.")
        self.until = until
        self.seconds = seconds


class TrustWithdrawn(AttemptInVain):
    """What an attempt relied on was found to be wrong while it ran: the next one reads everything."""

    def __init__(self) -> None:
        super().__init__("the volume's storage said wrongly what is unchanged, which was found meanwhile")


class JournalLost(EngineError):
    """The journal of a running backup lacks segments that the attempt recorded.

    A database that crashed, or was replaced by its standby, may have lost confirmed commits.  Another attempt
    repeats the lost work.
    """

    may_pass = True


class SourceMoved(EngineError):
    """The source changed while it was read, on every try."""


class SourceUnreadable(EngineError):
    """The source's storage failed while it was read; the message says how, without a path."""


class ChangeMissed(EngineError):
    """A storage said wrongly that a range is unchanged, or zero: none of its answers is trusted."""


class StorageChanged(EngineError):
    """A volume's storage is gone, shorter, or another one; only an operator can repair that.

    :param volume: the resource, e.g. ``volume <id>``.
    :param problem: what is wrong with it, without any path, e.g. ``is gone``.
    :param hint: where it is and what to do: for the log and the operator, never for a user.
    """

    def __init__(self, volume: str, problem: str, hint: str) -> None:
        super().__init__(f"The storage of {volume} {problem}.")
        self.problem = problem
        self.hint = hint
        # Tracebacks show it.
        self.add_note(hint)


class TargetError(EngineError):
    """The target volume could not be opened, fenced or written."""

    may_pass = True
