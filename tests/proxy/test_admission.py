"""Which requests never reach the engine, whatever its state."""

from __future__ import annotations

import pytest

from wings_proxy.proxy.admission import ForwardSettings, check, too_large
from wings_proxy.proxy.api_errors import ErrorCode

SETTINGS = ForwardSettings(engine_port=8000, max_body_bytes=100, max_inflight=2)


def outcome(
    target: str = "/v1/x", *, method: str = "POST", http10: bool = False, in_flight: int = 0, **fields: bytes
) -> tuple[int, str] | None:
    read = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    refusal = check(method, target, read, SETTINGS, http10=http10, in_flight=in_flight)
    return None if refusal is None else (refusal.status, refusal.code.value)


@pytest.mark.parametrize("target", ["/", "/v1/models?x=%2F;+", "//double", "/a/../b", "/\udcff\xe9"])
def test_a_path_passes_whatever_is_in_it(target: str) -> None:
    assert outcome(target) is None


@pytest.mark.parametrize("target", ["*", "http://other/v1/models", "other:80", "", "/a b", "/a\tb", "/a\x00", "/a\x7f"])
def test_any_other_target_does_not(target: str) -> None:
    assert outcome(target) == (400, "invalid_request")


def test_methods_that_turn_a_proxy_against_its_engine() -> None:
    assert outcome(method="TRACE") == outcome(method="CONNECT") == (405, "method_not_allowed")
    refusal = check("TRACE", "/x", {}, ForwardSettings(engine_port=1), http10=False, in_flight=0)
    assert refusal is not None
    # RFC 9110 §15.5.6: a 405 says which methods there are.
    assert (b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS") in refusal.headers
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"):
        assert outcome(method=method) is None


@pytest.mark.parametrize("upgrade", [b"websocket", b"WebSocket", b"h2c, websocket", b"tcp"])
def test_an_upgrade_a_client_cannot_do_without_is_refused(upgrade: bytes) -> None:
    assert outcome(upgrade=upgrade) == (501, "upgrade_not_supported")


def test_a_mere_offer_is_not() -> None:
    assert outcome(upgrade=b"h2c") is None


def test_expectations() -> None:
    assert outcome(expect=b"100-Continue") is None
    assert outcome(expect=b"200-ok") == (417, "expectation_failed")


def test_transfer_codings() -> None:
    assert outcome(transfer_encoding=b"Chunked") is None
    for coding in (b"gzip, chunked", b"chunked,chunked", b"identity"):
        assert outcome(transfer_encoding=coding) == (400, "invalid_request")


def test_http_1_0_has_none() -> None:
    assert outcome(http10=True) is None
    assert outcome(http10=True, transfer_encoding=b"chunked") == (400, "invalid_request")


def test_announced_lengths() -> None:
    assert outcome(content_length=b"100") is None
    assert outcome(content_length=b"101") == (413, "request_too_large")


def test_requests_in_flight() -> None:
    assert outcome(in_flight=1) is None
    assert outcome(in_flight=2) == (429, "overloaded")
    assert check("GET", "/", {}, ForwardSettings(engine_port=8000), http10=False, in_flight=10**6) is None


def test_a_body_that_is_too_large_ends_the_connection() -> None:
    error = too_large(7)
    assert (error.status, error.code, error.close) == (413, ErrorCode.REQUEST_TOO_LARGE, True)
    assert "7 bytes" in error.message
