"""Names a process uniquely: no other process, earlier or later, on any host, has the same name."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

from backupfw.errors import TargetError


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process of some host.

    :ivar boot_id: the kernel's random id of this boot, so it identifies the host, too.
    :ivar pid_namespace: the namespace of ``pid``; containers have their own.
    :ivar pid: the process id.
    :ivar start_time: clock ticks from boot to its start: distinguishes it from a later process with its id.
    """

    boot_id: str
    pid_namespace: str
    pid: int
    start_time: int

    @classmethod
    def of_this(cls) -> ProcessName:
        """Name the running process."""
        pid = os.getpid()
        return cls(boot_id(), _pid_namespace(), pid, _start_time(pid) or 0)

    def kill(self) -> bool:
        """End the process at once (SIGKILL works on a stopped one too).

        :return: whether it was killed or had ended already; False for this process itself and for
            one that is not visible from here.
        :raises TargetError: this process has no right to kill it.
        """
        if (self.boot_id, self.pid_namespace) != (boot_id(), _pid_namespace()) or self.pid == os.getpid():
            return False
        try:
            # The descriptor still refers to this process when another one gets its id.
            handle = os.pidfd_open(self.pid)
        except OSError as error:
            # No process has the id; a thread may have it by now.
            if error.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
                return True
            raise
        try:
            if _start_time(self.pid) == self.start_time:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise TargetError("An earlier writer may still be alive and may not be ended.") from error
        finally:
            os.close(handle)
        return True


def boot_id() -> str:
    """Return the random id that the kernel chose when this host booted."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115


def _start_time(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22; the second field is the command in parentheses and may hold anything.
    return int(text[text.rindex(b")") + 2 :].split()[19])
