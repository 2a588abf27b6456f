"""The key files are looked at before anything starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wings_proxy.config.load import ConfigError
from wings_proxy.config.settings import Config
from wings_proxy.proxy import key_files
from wings_proxy.proxy.key_files import read_key_files


def config(clients: Path | str = "", engine: Path | str = "") -> Config:
    return Config(model_path="/m", api_keys_file=str(clients), engine_api_key_file=str(engine))


def problems(clients: Path | str = "", engine: Path | str = "") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read_key_files(config(clients, engine))
    return caught.value.problems


def test_no_files_no_key() -> None:
    assert read_key_files(config()) is None


def test_the_engines_key(tmp_path: Path) -> None:
    # As an editor of another system writes it.
    (tmp_path / "key").write_bytes(b"# the engine's\r\nsk-engine\r\n")
    (tmp_path / "keys").write_bytes(b"sk-1\r\nsk-2\r\n")
    assert read_key_files(config(tmp_path / "keys", tmp_path / "key")) == b"sk-engine"


def test_a_fifo_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert problems(tmp_path / "fifo") == (f"WINGS_API_KEYS_FILE={tmp_path}/fifo: cannot be read: not a regular file",)


def test_what_is_wrong_with_both_is_said_at_once_and_no_key_is(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("sk-1\nsk-2\n")
    assert problems(tmp_path / "absent", tmp_path / "two") == (
        f"WINGS_API_KEYS_FILE={tmp_path}/absent: cannot be read: No such file or directory",
        f"WINGS_ENGINE_API_KEY_FILE={tmp_path}/two: must hold one key, holds 2",
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no key in it"),
        (b"# only a comment\n", "no key in it"),
        (b"two words\n", "line 1: a key is printable ASCII without spaces"),
        (b"x" * (1024 * 1024 + 1), "cannot be read: larger than 1048576 bytes"),
    ],
)
def test_a_file_that_holds_something_else(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert problems(tmp_path / "keys") == (f"WINGS_API_KEYS_FILE={tmp_path}/keys: {why}",)


def test_a_directory_is_none(tmp_path: Path) -> None:
    assert problems(tmp_path) == (f"WINGS_API_KEYS_FILE={tmp_path}: cannot be read: Is a directory",)


def test_who_may_not_read_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> tuple[bytes, os.stat_result]:  # root, as whom tests may run, may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(key_files, "read_key_file", refuse)
    assert problems("/keys") == (f"WINGS_API_KEYS_FILE=/keys: cannot be read: Permission denied for uid {os.getuid()}",)
