"""Reaches volumes from this host, through os-brick: as block devices and files."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_utils import netutils, strutils

from backupfw.errors import ConfigError, InvalidVolume
from backupfw.volume.base import VolumeProvider, VolumeRef
from backupfw.volume.loader import load_provider
from backupfw_cinder.options import attach_directory

LOG = log.getLogger(__name__)

#: What a connection says of a volume whose bytes are those of the disk.
_RAW = (None, "", "raw")


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the warnings that a host lacks what only volumes of one kind need: an iSCSI initiator, or NVMe.

    Without it, the Block Storage service or os-brick refuses such a volume, and says why.
    """
    return record.funcName not in ("get_initiator", "_is_native_multipath_supported")


for _connector in ("iscsi", "nvmeof"):
    logging.getLogger(f"os_brick.initiator.connectors.{_connector}").addFilter(_is_news)

_preparing = threading.Lock()
_prepared = False


@dataclass(frozen=True, slots=True)
class Connected:
    """A volume that this host reaches.

    :ivar path: of a block device or file.
    :ivar is_image: it is a qcow2 image; else its bytes are those of the disk.
    :ivar device: what os-brick needs to disconnect it.
    """

    path: str
    is_image: bool
    device: Any


class Host:
    """This host.  Thread-safe.

    :param options: values of the provider's options.
    """

    def __init__(self, options: Any) -> None:
        self._directory = attach_directory(options)
        self._root_helper = str(options.root_helper or "")
        self._multipath = bool(options.multipath)
        self._address = options.connector_ip

    def connector(self) -> dict[str, Any]:
        """Return what a Block Storage service must know of this host to export a volume to it.

        :raises OSError: it cannot be found out.
        """
        brick = self._brick()
        with _failures("what this host can reach is not known"):
            found = brick.get_connector_properties(
                self._helper(), self._address or netutils.get_my_ipv4(), self._multipath, False
            )
        assert isinstance(found, dict)
        return found

    def connect(self, info: Mapping[str, Any]) -> Connected:
        """Connect an attached volume.

        :param info: the attachment's ``connection_info``.
        :raises OSError: it cannot be reached now.
        :raises InvalidVolume: volumes of this kind are not reached as files or devices.
        """
        format_ = info.get("format")
        if format_ not in (*_RAW, "qcow2"):
            raise InvalidVolume(f"The volume is an image of the format {format_}, which is not read.")
        connector = self._of(info)
        with _failures("the volume cannot be connected"):
            device = connector.connect_volume(dict(info))
        path = device.get("path") if isinstance(device, dict) else None
        if not isinstance(path, (str, bytes)):
            with _failures("the volume cannot be disconnected"):
                connector.disconnect_volume(dict(info), device)
            raise InvalidVolume("Volumes of this kind are not reached as a file or device.")
        folder, name = os.path.split(os.fsdecode(path))
        # A name below /dev may be a link; a directory must not be one.
        return Connected(os.path.join(os.path.realpath(folder), name), format_ == "qcow2", device)

    def disconnect(self, info: Mapping[str, Any], device: Any = None, *, force: bool = False) -> None:
        """Disconnect a volume; one that is not connected counts as disconnected.

        :param device: what :meth:`connect` has returned; None: another process has connected it.
        :param force: go on after a failure: what was not written is lost.
        :raises OSError: it cannot be disconnected.
        """
        with _failures("the volume cannot be disconnected"):
            self._of(info).disconnect_volume(dict(info), device or {}, force=force, ignore_errors=force)

    def guard(self, volume: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Keep other programs of this host from a change of connections of the same target meanwhile.

        :param volume: as the Block Storage service shows it.
        """
        self._brick()
        from os_brick.initiator.utils import guard_connection

        guarding: AbstractContextManager[None] = guard_connection(dict(volume))
        return guarding

    def local(self, connected: Connected) -> VolumeProvider:
        """Return the provider ``local`` as it is for a connected volume: it reads, writes and fences.

        An image may have backing files where it is: the snapshots of the volume.
        """
        provider = load_provider("local")
        values = {opt.dest: opt.default for opt in provider.options()}
        values["volumes_dir"] = os.path.join(self._directory, "fences")
        values["backing_dirs"] = [os.path.dirname(connected.path)] if connected.is_image else []
        return provider(SimpleNamespace(**values))

    def reference(self, volume: VolumeRef, connected: Connected, local: VolumeProvider) -> VolumeRef:
        """Return a connected volume as the provider ``local`` knows it.

        What is no image by the connection is never one, whatever its first bytes look like.
        """
        storage_id = None
        if connected.is_image:
            storage_id = local.adopt(connected.path, to_copy=True, in_use=True).storage_id
        return VolumeRef(volume.id, volume.length, connected.path, adopted=True, storage_id=storage_id)

    def _of(self, info: Mapping[str, Any]) -> Any:
        from os_brick.exception import InvalidConnectorProtocol

        kind = str(info["driver_volume_type"])
        try:
            return self._brick().InitiatorConnector.factory(
                kind.upper(),
                self._helper(),
                use_multipath=self._multipath,
                conn={"mount_point_base": os.path.join(self._directory, "mounts")},
            )
        except InvalidConnectorProtocol as error:
            raise InvalidVolume(f"Volumes with connections of the type {kind} are not reached.") from error

    def _helper(self) -> str:
        return "" if os.geteuid() == 0 else self._root_helper

    def _brick(self) -> Any:
        """Return the module of os-brick that connects, prepared once for the process.

        os-brick has one configuration for a process: oslo.config's global one, which nothing else uses here.
        """
        # Its import takes a second, which only this way of reading costs.
        from os_brick.initiator import connector

        global _prepared
        with _preparing:
            if not _prepared:
                import os_brick
                from oslo_concurrency import lockutils

                locks = os.path.join(self._directory, "locks")
                for path in (locks, os.path.join(self._directory, "mounts")):
                    try:
                        os.makedirs(path, mode=0o700, exist_ok=True)
                    except OSError as error:
                        raise ConfigError(
                            f"option attach_dir: {path!r} cannot be made: {error.strerror}"
                        ) from error
                lockutils.set_defaults(locks)
                os_brick.setup(cfg.CONF)
                program = os.path.join(os.path.dirname(sys.executable), "privsep-helper")
                # The log gets what the helper prints, also warnings to developers.
                # A line of sudoers names the program alone.
                command = (
                    [self._helper()] if self._helper() else [shlex.quote(sys.executable), "-W", "ignore"]
                )
                command.append(shlex.quote(program))
                cfg.CONF.set_override("helper_command", " ".join(command), "privsep_osbrick")
                _prepared = True
        return connector


@contextmanager
def _failures(text: str) -> Iterator[None]:
    """Let what os-brick and its programs raise be errors on the way; only the log says what they were."""
    from os_brick.exception import BrickException
    from oslo_concurrency.processutils import ProcessExecutionError
    from oslo_privsep.daemon import FailedToDropPrivileges

    try:
        yield
    except (BrickException, ProcessExecutionError, FailedToDropPrivileges, OSError, ValueError) as error:
        LOG.warning("%s: %s", text, strutils.mask_password(str(error)))
        raise OSError(errno.EIO, text) from None
