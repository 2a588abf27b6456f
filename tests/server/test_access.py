"""Who may read our own endpoints, and which web pages may use us."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.server.access import Access
from wings_proxy.server.routes import OWN_PATHS, PAGE_FILES

REFUSED = ApiError(401, ErrorCode.UNAUTHORIZED, "no")
CHAT = "https://chat.example.com"
ASKS = {"Origin": CHAT, "Access-Control-Request-Method": "POST"}


def with_key(keys: Sequence[bytes]) -> ApiError | None:
    return None if b"key" in keys else REFUSED


def test_without_keys_everything_is_open() -> None:
    assert all(Access().refusal(path, []) is None for path in OWN_PATHS)


def test_with_keys_probes_stay_open_and_all_the_rest_is_closed() -> None:
    access = Access(with_key)
    closed = {path for path in OWN_PATHS | PAGE_FILES if access.refusal(path, []) is not None}
    assert closed == {"/", "/status.json", "/docs", "/openapi.json"} | PAGE_FILES
    assert access.refusal("/docs", [(b"Authorization", b"Bearer key")]) is None
    assert access.refusal("/added-one-day", []) is not None


def basic(credentials: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"Host", b"x"), (b"Authorization", b"basic " + base64.b64encode(credentials))]


def test_a_browser_shows_the_key_as_a_password() -> None:
    access = Access(with_key)
    refusal = access.refusal("/", [])
    assert refusal is not None
    assert [challenge.partition(b" ")[0] for challenge in refusal.challenges] == [b"Bearer", b"Basic"]
    assert REFUSED.challenges == (b"Bearer",)
    assert access.refusal("/", basic(b"anybody:key")) is None
    assert access.refusal("/status.json", basic(b":key")) is None


@pytest.mark.parametrize("credentials", [b"key", b"key:", b"anybody:other", b"", b"anybody:key:"])
def test_other_passwords_do_not_pass(credentials: bytes) -> None:
    assert Access(with_key).refusal("/", basic(credentials)) is not None


def test_what_is_no_base64_does_not_pass() -> None:
    assert Access(with_key).refusal("/", [(b"Authorization", b"Basic \xff!")]) is not None


def test_metrics_are_closed_when_asked_for() -> None:
    assert Access(with_key).refusal("/metrics", []) is None
    assert Access(with_key, metrics_auth=True).refusal("/metrics", []) is not None
    assert Access(with_key, metrics_auth=True).refusal("/livez", []) is None


def test_no_page_is_allowed_by_default() -> None:
    assert Access().allowed(CHAT) == {}
    assert Access().preflight("OPTIONS", ASKS) is None


def test_a_named_origin_is_allowed_exactly() -> None:
    access = Access(origins=[CHAT])
    assert access.allowed(CHAT)["Access-Control-Allow-Origin"] == CHAT
    assert access.allowed(None) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    "origin", ["http://chat.example.com", CHAT + ".evil.com", CHAT + ":8443", "null", CHAT.upper(), "", "*"]
)
def test_any_other_is_not(origin: str) -> None:
    assert Access(origins=[CHAT]).allowed(origin) == {"Vary": "Origin"}


def test_the_byte_path_gets_the_same_as_lines() -> None:
    assert Access().allowed_lines is None
    lines = Access(origins=[CHAT]).allowed_lines
    assert lines is not None
    assert lines(CHAT).startswith(b"Vary: Origin\r\nAccess-Control-Allow-Origin: https://chat.example.com\r\n")
    assert lines(None) == lines("\udcff") == b"Vary: Origin\r\n"


def test_every_page_but_without_credentials() -> None:
    fields = Access(origins=["*"]).allowed(CHAT)
    assert fields["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in fields


def test_a_preflight_names_what_may_be_sent() -> None:
    fields = Access(origins=[CHAT]).preflight("OPTIONS", ASKS)
    assert fields is not None
    assert fields["Access-Control-Allow-Headers"] == "Authorization, *"
    assert "POST" in fields["Access-Control-Allow-Methods"]


def test_a_preflight_of_a_stranger_is_answered_without_leave() -> None:
    asks = {**ASKS, "Origin": "https://evil.example"}
    assert Access(origins=[CHAT]).preflight("OPTIONS", asks) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    ("method", "headers"), [("GET", ASKS), ("OPTIONS", {}), ("OPTIONS", {"Origin": CHAT}), ("OPTIONS", {"A": "b"})]
)
def test_what_is_no_preflight(method: str, headers: dict[str, str]) -> None:
    assert Access(origins=[CHAT]).preflight(method, headers) is None
