"""Our own errors, as an OpenAI client reads them."""

from __future__ import annotations

import json

import pytest

from wings_proxy.proxy.api_errors import ApiError, ErrorCode


def test_the_body_has_the_shape_openai_clients_parse() -> None:
    error = ApiError(503, ErrorCode.ENGINE_NOT_READY, "the engine is loading", retry_after=5)
    assert json.loads(error.body) == {
        "error": {
            "message": "the engine is loading",
            "type": "server_error",
            "param": None,
            "code": "engine_not_ready",
        }
    }
    assert str(error) == "503 engine_not_ready: the engine is loading"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (429, "rate_limit_error"), (500, "server_error")],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert ApiError(status, ErrorCode.INTERNAL_ERROR, "x").type == kind


def test_the_reason_is_the_statuss() -> None:
    assert ApiError(413, ErrorCode.REQUEST_TOO_LARGE, "x").reason == b"Content Too Large"


def test_the_headers_say_who_answers() -> None:
    assert ApiError(404, ErrorCode.NOT_FOUND, "x").headers == [
        (b"Content-Type", b"application/json"),
        (b"X-Wings-Origin", b"proxy"),
    ]


def test_a_refusal_to_be_tried_again_says_when() -> None:
    assert (b"Retry-After", b"7") in ApiError(503, ErrorCode.DRAINING, "x", retry_after=7).headers


def test_a_missing_key_names_the_scheme() -> None:
    assert (b"WWW-Authenticate", b"Bearer") in ApiError(401, ErrorCode.UNAUTHORIZED, "x").headers


def test_a_method_that_is_none_names_those_there_are() -> None:
    assert (b"Allow", b"GET") in ApiError(405, ErrorCode.METHOD_NOT_ALLOWED, "x", allow=b"GET").headers


def test_as_an_event_it_is_one_line_and_a_blank_one() -> None:
    event = ApiError(502, ErrorCode.UPSTREAM_ERROR, "line\nbreak").event
    assert event.startswith(b'data: {"error": {"message": "line\\nbreak"')
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


def test_a_status_without_a_reason_phrase_is_refused() -> None:
    with pytest.raises(ValueError, match="status 418"):
        ApiError(418, ErrorCode.INTERNAL_ERROR, "x")


def test_every_code_reads_like_its_name() -> None:
    assert all(code.value == code.name.lower() for code in ErrorCode)
