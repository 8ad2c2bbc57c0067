"""The directory of overlays when it is small: the machine must not notice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from backupfw_nbd.machines import QemuProvider

from backupfw.chunkstore.options import option_values
from backupfw.errors import SourceUnreadable
from backupfw.testing.volume import adopted
from tests.servers.directory import server_directory
from tests.servers.qemu import Machine, machine, qemu_missing, run

pytestmark = [pytest.mark.server, pytest.mark.root]

MIB = 1 << 20
LENGTH = 16 * MIB


@pytest.fixture
def vm() -> Iterator[Machine]:
    """A machine whose overlays are in a file system that is a little longer than a disk."""
    if missing := qemu_missing():
        pytest.skip(missing)
    if os.geteuid() != 0:
        pytest.skip("needs root")
    # Sockets have short paths.
    with server_directory() as directory, machine(directory) as running:
        run("mount", "-t", "tmpfs", "-o", f"size={LENGTH + 2 * MIB}", "tmpfs", running.scratch)
        try:
            yield running
            running.stop()
        finally:
            run("umount", "--lazy", running.scratch)


def test_a_machine_can_overwrite_everything_while_a_point_is_read(vm: Machine) -> None:
    provider = QemuProvider(option_values(QemuProvider.options(), scratch_dir=str(vm.scratch)))
    node = vm.add_disk(LENGTH)
    vm.write(node, 0, b"old" * (LENGTH // 4))
    volume = adopted(provider, vm.location(node))
    with provider.open_point(volume, "a") as point:
        # Nobody else can take the room.
        with pytest.raises(OSError, match="No space left"):
            (vm.scratch / "other").write_bytes(bytes(4 * MIB))
        (vm.scratch / "other").unlink()
        vm.write(node, 0, b"new!" * (LENGTH // 4))
        found = bytearray(LENGTH)
        point.read_into(0, memoryview(found))
        assert found == (b"old" * (LENGTH // 4)).ljust(LENGTH, b"\0")
    assert vm.names() == {f"disk {node}"}
    assert os.statvfs(vm.scratch).f_bfree == os.statvfs(vm.scratch).f_blocks


def test_without_room_there_is_no_point_and_the_machine_goes_on(vm: Machine) -> None:
    provider = QemuProvider(option_values(QemuProvider.options(), scratch_dir=str(vm.scratch)))
    node = vm.add_disk(2 * LENGTH)
    volume = adopted(provider, vm.location(node))
    with pytest.raises(SourceUnreadable, match="as much room as the disk is long") as caught:
        provider.open_point(volume, "a")
    # There may be room later; users are told no path.
    assert caught.value.may_pass
    assert str(vm.scratch) not in str(caught.value)
    vm.write(node, 0, b"new!" * (LENGTH // 2))
    assert vm.names() == {f"disk {node}"}
    assert os.statvfs(vm.scratch).f_bfree == os.statvfs(vm.scratch).f_blocks
