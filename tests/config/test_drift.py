"""The configuration file is watched, and only reported."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wings_proxy.config.drift import ConfigFile, ConfigFileSeen, watch_config_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("model: {max_len: 4096}\n")
    return path


def test_the_same_bytes_under_a_new_inode_are_no_change(path: Path) -> None:
    file = ConfigFile.read(path)
    again = path.with_name("again")
    again.write_bytes(path.read_bytes())
    again.rename(path)
    assert not file.has_changed()


def test_a_configmap_swaps_its_link(path: Path) -> None:
    versions = [path.with_name(name) for name in ("..1", "..2")]
    for number, version in enumerate(versions):
        version.mkdir()
        (version / "config.yaml").write_text(f"model: {{max_len: {number + 1}}}\n")
    data = path.with_name("..data")
    data.symlink_to(versions[0])
    mounted = data / "config.yaml"
    file = ConfigFile.read(mounted)
    (swap := path.with_name("..data_tmp")).symlink_to(versions[1])
    swap.replace(data)
    assert file.has_changed()


def test_a_file_that_is_gone_has_changed_and_one_that_came_too(path: Path) -> None:
    file, absent = ConfigFile.read(path), ConfigFile.read(path.with_name("absent"))
    assert not absent.has_changed()
    path.rename(absent.path)
    assert file.has_changed()
    assert absent.has_changed()


def replace(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


async def test_it_tells_each_change_once_and_the_way_back(path: Path) -> None:
    told: asyncio.Queue[ConfigFileSeen] = asyncio.Queue()
    watching = asyncio.create_task(watch_config_file(ConfigFile.read(path), told.put_nowait, every_seconds=0.001))
    before = b"model: {max_len: 4096}\n"
    async with asyncio.timeout(40):
        for content, changed in ((b"model: {max_len: 1}\n", True), (before, False), (b"", True)):
            replace(path, content)
            assert await told.get() == ConfigFileSeen(changed)
    await asyncio.sleep(0.01)
    assert told.empty()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
