"""The sidecar's side of the shared volume, on real directories."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from wings_proxy.launch import LaunchSpec, render
from wings_proxy.volume import Volume, VolumeError, VolumeReason

RUN = "0b1c2d3e-4f50-4a61-8b72-9c83ad94be05"
NEXT_RUN = "1b1c2d3e-4f50-4a61-8b72-9c83ad94be05"
OLD = render(LaunchSpec(("engine", "--old"), (), 70, 30))
NEW = render(LaunchSpec(("engine", "--new"), (), 70, 30))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    directory = tmp_path / "volume"
    directory.mkdir()
    return Volume(directory)


def script_in(volume: Volume) -> Path:
    return volume.path / "start_command.sh"


# Publishing


async def test_the_script_lies_there_runnable_by_everybody_and_alone(volume: Volume) -> None:
    assert await volume.publish(NEW) is True
    assert script_in(volume).read_bytes() == NEW.text
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


async def test_a_narrow_umask_does_not_lock_the_engine_out(volume: Volume) -> None:
    before = os.umask(0o077)
    try:
        await volume.publish(NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755


async def test_a_restarted_sidecar_adopts_the_script_it_finds(volume: Volume) -> None:
    await volume.publish(NEW)
    inode = script_in(volume).stat().st_ino
    assert await Volume(volume.path).publish(NEW) is False
    assert script_in(volume).stat().st_ino == inode


async def test_adopting_puts_the_mode_right(volume: Volume) -> None:
    await volume.publish(NEW)
    script_in(volume).chmod(0o777)
    assert await volume.publish(NEW) is False
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755


async def test_a_new_configuration_leaves_the_running_engine_its_old_file(volume: Volume) -> None:
    await volume.publish(OLD)
    with script_in(volume).open("rb") as running:
        assert await volume.publish(NEW) is True
        assert running.read() == OLD.text
    assert script_in(volume).read_bytes() == NEW.text


async def test_a_script_that_somebody_changed_is_written_anew(volume: Volume) -> None:
    await volume.publish(NEW)
    same_length = NEW.text.replace(b"--new", b"--bad")
    script_in(volume).write_bytes(same_length)
    assert await volume.publish(NEW) is True
    assert script_in(volume).read_bytes() == NEW.text


async def test_the_right_bytes_under_a_second_name_are_not_adopted(volume: Volume) -> None:
    await volume.publish(NEW)
    os.link(script_in(volume), volume.path / "second-name")
    assert await volume.publish(NEW) is True
    (volume.path / "second-name").write_bytes(b"evil")
    assert script_in(volume).read_bytes() == NEW.text


async def test_a_link_is_replaced_and_its_target_untouched(volume: Volume, tmp_path: Path) -> None:
    target = tmp_path / "passwd"
    target.write_bytes(NEW.text)
    target.chmod(0o600)
    script_in(volume).symlink_to(target)
    assert await volume.publish(NEW) is True
    assert not script_in(volume).is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    await volume.publish(OLD)
    assert target.read_bytes() == NEW.text


async def test_a_dangling_link_is_replaced(volume: Volume, tmp_path: Path) -> None:
    script_in(volume).symlink_to(tmp_path / "nowhere")
    assert await volume.publish(NEW) is True
    assert not (tmp_path / "nowhere").exists()


async def test_a_fifo_is_replaced_without_waiting_for_its_writer(volume: Volume) -> None:
    os.mkfifo(script_in(volume))
    assert await volume.publish(NEW) is True
    assert script_in(volume).is_file()


async def test_a_socket_is_replaced(volume: Volume) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(script_in(volume)))
        assert await volume.publish(NEW) is True
    assert script_in(volume).is_file()


async def test_a_directory_in_the_scripts_place_is_somebody_elses(volume: Volume) -> None:
    script_in(volume).mkdir()
    (script_in(volume) / "precious").touch()
    with pytest.raises(VolumeError) as raised:
        await volume.publish(NEW)
    assert raised.value.reason == "volume_occupied"
    assert raised.value.detail == f"{script_in(volume)}: Is a directory"
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


async def test_what_a_killed_sidecar_left_half_written_is_cleared_away(volume: Volume) -> None:
    (volume.path / ".start_command.sh.0123456789abcdef").write_bytes(NEW.text[:100])
    (volume.path / ".hold.0123456789abcdef").touch()
    (volume.path / ".start_command.sh.directory").mkdir()
    (volume.path / "other").touch()
    await volume.publish(NEW)
    names = sorted(entry.name for entry in volume.path.iterdir())
    assert names == [".start_command.sh.directory", "other", "start_command.sh"]


async def test_two_sidecars_at_once_never_mix_their_scripts(volume: Volume) -> None:
    other = Volume(volume.path)
    for _ in range(10):
        await asyncio.gather(*(one.publish(script) for one in (volume, other) for script in (OLD, NEW)))
        assert script_in(volume).read_bytes() in (OLD.text, NEW.text)
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


async def test_no_volume_mounted(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as raised:
        await Volume(tmp_path / "absent").publish(NEW)
    assert raised.value.reason is VolumeReason.MISSING
    assert str(raised.value) == f"volume_missing: {tmp_path}/absent/start_command.sh: No such file or directory"


async def test_a_file_where_the_volume_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError) as raised:
        await Volume(tmp_path / "file").publish(NEW)
    assert raised.value.reason is VolumeReason.NOT_A_DIRECTORY
