"""API keys: who passes, and how a file of them is read."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.api_keys import ApiKeys, ApiKeysError, parse_keys
from wings_proxy.proxy.headers import offered_keys


@pytest.fixture
async def keys(tmp_path: Path) -> ApiKeys:
    (tmp_path / "keys").write_bytes(b"# team a\nsk-alpha\n\n  sk-beta  \r\n")
    keys = ApiKeys(tmp_path / "keys")
    assert await keys.load()
    return keys


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Authorization", b"Bearer sk-alpha")],
        [(b"authorization", b"bearer sk-beta")],
        [(b"AUTHORIZATION", b"BEARER   sk-beta ")],
        [(b"x-api-key", b"sk-alpha")],
        [(b"X-Api-Key", b"sk-alpha"), (b"Authorization", b"Bearer sk-beta"), (b"a", b"b")],
        [(b"X-Api-Key", b"sk-alpha"), (b"Authorization", b"Basic eDp5")],
    ],
)
async def test_a_key_of_ours_passes(keys: ApiKeys, fields: list[tuple[bytes, bytes]]) -> None:
    assert keys(offered_keys(fields)) is None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Authorization", b"Basic c2stYWxwaGE=")],
        [(b"Authorization", b"sk-alpha")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearer sk-alph")],
        [(b"Authorization", b"Bearer sk-alphaa")],
        [(b"Authorization", b"Bearer SK-ALPHA")],
        [(b"Authorization", b"Bearer \xff\xfe")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"# team a")],
        [(b"x-api-key", b"sk-alpha"), (b"Authorization", b"Bearer guess")],
        [(b"Authorization", b"Bearer sk-alpha"), (b"Authorization", b"Bearer guess")],
    ],
)
async def test_anything_else_does_not(keys: ApiKeys, fields: list[tuple[bytes, bytes]]) -> None:
    refusal = keys(offered_keys(fields))
    assert refusal is not None
    assert (refusal.status, refusal.code) == (401, ErrorCode.UNAUTHORIZED)
    assert "sk-alpha" not in refusal.message


def test_what_a_request_offers() -> None:
    assert offered_keys([(b"Authorization", b"Bearer a b"), (b"x-api-key", b"c")]) == [b"a b", b"c"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no key"),
        (b"# only a comment\n", "no key"),
        (b"good\nbad key\n", "line 2: a key is printable ASCII without spaces"),
        (b"schl\xc3\xbcssel\n", "line 1"),
        (b"a\x00b\n", "line 1"),
        (b"a\x7fb\n", "line 1"),
    ],
)
def test_files_that_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_keys(data)


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApiKeysError, match=r"API key file .*/missing: No such file or directory"):
        await ApiKeys(tmp_path / "missing").load()


async def test_a_bad_file_is_named_without_its_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"secret one\n")
    with pytest.raises(ApiKeysError, match="line 1") as caught:
        await ApiKeys(tmp_path / "keys").load()
    assert "secret" not in str(caught.value)


async def test_an_unchanged_file_is_not_read_again(keys: ApiKeys) -> None:
    assert not await keys.load()


async def test_a_replaced_file_is(keys: ApiKeys, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"sk-gamma\n")
    (tmp_path / "new").replace(tmp_path / "keys")
    assert await keys.load()
    assert keys([b"sk-gamma"]) is None
    assert keys([b"sk-alpha"]) is not None


async def test_a_change_is_noticed_and_a_broken_file_reported_once(
    keys: ApiKeys, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wings_proxy.proxy.api_keys")
    watching = asyncio.create_task(keys.watch(poll_seconds=0.001))

    async def logged(message: str) -> None:
        async with asyncio.timeout(40):
            while message not in caplog.text:  # noqa: ASYNC110 - the log is what is tested
                await asyncio.sleep(0.001)

    os.unlink(tmp_path / "keys")  # noqa: PTH108
    await logged("the keys read before stay in force")
    assert keys([b"sk-alpha"]) is None
    await asyncio.sleep(0.02)
    assert caplog.text.count("stay in force") == 1
    (tmp_path / "keys").write_bytes(b"sk-delta\n")
    await logged("API keys reloaded")
    assert keys([b"sk-delta"]) is None
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
