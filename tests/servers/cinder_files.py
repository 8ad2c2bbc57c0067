"""A Cinder driver whose volumes are plain files, for a Cinder of the tests.

It stands for all drivers that cannot run on a test machine, because they need a kernel's iSCSI, NVMe-oF or
NFS, or LVM.  Everything around it is real: API, scheduler, quotas, policies, attachments, and os-brick, which
gets ``local`` as the type of the connection.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

from cinder.volume import driver
from oslo_config import cfg

_OPTIONS = [cfg.StrOpt("files_dir")]


def _lock(file):
    """Lock a file; a wait in the kernel would stop the whole process, with the copy that has the lock."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return


class FilesDriver(driver.VolumeDriver):
    """Volumes and snapshots are sparse files of one directory; copies copy."""

    VERSION = "1"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(_OPTIONS)
        self._directory = self.configuration.files_dir

    def _path(self, thing):
        return os.path.join(self._directory, thing.name)

    def _make(self, thing, source=None):
        path = self._path(thing)
        if source is not None:
            with open(self._path(source), "rb") as locked:
                # Who writes into a volume in a test has the lock, so the copy is of one moment.
                _lock(locked)
                subprocess.run(["cp", "--sparse=always", self._path(source), path], check=True)
        else:
            Path(path).touch()

    def _resize(self, volume, gib):
        os.truncate(self._path(volume), max(gib << 30, os.path.getsize(self._path(volume))))

    def check_for_setup_error(self):
        """Nothing is needed."""

    def create_volume(self, volume):
        """Make a sparse file."""
        self._make(volume)
        self._resize(volume, volume.size)

    def delete_volume(self, volume):
        """Remove it."""
        Path(self._path(volume)).unlink(missing_ok=True)

    def create_snapshot(self, snapshot):
        """Copy the file."""
        self._make(snapshot, snapshot.volume)

    delete_snapshot = delete_volume

    def create_volume_from_snapshot(self, volume, snapshot):
        """Copy the snapshot's file."""
        self._make(volume, snapshot)
        if os.path.getsize(self._path(volume)) == snapshot.volume_size << 30:
            self._resize(volume, volume.size)

    def create_cloned_volume(self, volume, src_vref):
        """Copy the volume's file."""
        self._make(volume, src_vref)

    def extend_volume(self, volume, new_size):
        """Make the file longer."""
        self._resize(volume, new_size)

    def ensure_export(self, context, volume):
        """Files need no export."""

    def create_export(self, context, volume, connector):
        """Files need no export."""

    def remove_export(self, context, volume):
        """Files need no export."""

    def initialize_connection(self, volume, connector):
        """Return the file's path."""
        return {"driver_volume_type": "local", "data": {"device_path": self._path(volume)}}

    def terminate_connection(self, volume, connector, **kwargs):
        """Nothing was made."""

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": self.configuration.volume_backend_name,
            "vendor_name": "tests",
            "driver_version": self.VERSION,
            "storage_protocol": "file",
            "total_capacity_gb": 1000,
            "free_capacity_gb": 1000,
            "reserved_percentage": 0,
            "QoS_support": False,
        }
