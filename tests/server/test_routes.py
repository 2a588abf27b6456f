"""Which path goes where, for every spelling a client can think of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.engines import ENGINES
from wings_proxy.server.routes import OWN_PATHS, Audience, Route, Routes

VLLM = ENGINES["vllm"]
CLOSED = Routes(VLLM, allow_admin=False, allow_all=False)
OPEN = Routes(VLLM, allow_admin=False, allow_all=True)
ADMIN = Routes(VLLM, allow_admin=True, allow_all=False)


@pytest.mark.parametrize(
    ("target", "template"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models?x=%2F..", "/v1/models"),
        ("/v1/models?", "/v1/models"),
        ("/v1/models/gpt2", "/v1/models/{id}"),
        ("/v1/models/Qwen%2FQwen3-8B", "/v1/models/{id}"),
        ("/v1/models/%E4%B8%AD", "/v1/models/{id}"),
        ("/v1/responses/resp_1/cancel?a=b", "/v1/responses/{id}/cancel"),
        ("/tokenize", "/tokenize"),
    ],
)
def test_inference_goes_to_the_engine(target: str, template: str) -> None:
    for routes in (CLOSED, OPEN, ADMIN):
        assert routes.find(target) == Route(Audience.ENGINE, template)


@pytest.mark.parametrize("path", sorted(OWN_PATHS))
def test_our_own_paths_are_never_forwarded(path: str) -> None:
    for routes in (CLOSED, OPEN, ADMIN):
        assert routes.find(path) == routes.find(f"{path}?x=1") == Route(Audience.SIDECAR, path)


@pytest.mark.parametrize("path", ["/sleep", "/v1/load_lora_adapter", "/collective_rpc", "/reset_prefix_cache"])
def test_administration_is_closed_unless_opened(path: str) -> None:
    for routes in (CLOSED, OPEN):
        found = routes.find(f"{path}?level=2")
        assert (found.audience, found.template) == (Audience.NOBODY, path)
        assert found.reason == "administration of the engine is closed; WINGS_ALLOW_ADMIN=true opens it"
    assert ADMIN.find(path) == Route(Audience.ENGINE, path)


def test_administration_with_an_id_is_closed_too() -> None:
    llamacpp = ENGINES["llamacpp"]
    assert Routes(llamacpp, allow_admin=False, allow_all=True).find("/slots/0?action=save").audience is Audience.NOBODY
    found = Routes(llamacpp, allow_admin=True, allow_all=False).find("/slots/0?action=save")
    assert found == Route(Audience.ENGINE, "/slots/{id}")


@pytest.mark.parametrize(
    "target",
    [
        "/unknown",
        "/v1",
        "/v1/models/",
        "/v1/models/a/b",
        "/V1/models",
        "/v1/chat/completions/",
        "/health/",
        "",
        "*",
        "/v1/",
    ],
)
def test_an_unknown_path_is_forwarded_only_where_asked_for(target: str) -> None:
    found = CLOSED.find(target)
    assert (found.audience, found.template) == (Audience.NOBODY, "other")
    assert found.reason == "no such path; WINGS_ALLOW_ALL_PATHS=true forwards unknown paths"


@pytest.mark.parametrize(
    "target", ["/unknown", "/v1/models/", "/a/b.c/~d?e=%2F", "/v1/x:y@z", "/Sleepy", "/...", "/.a/..b"]
)
def test_a_plain_unknown_path_is_forwarded_where_asked_for(target: str) -> None:
    assert OPEN.find(target) == Route(Audience.ENGINE, "other")


@pytest.mark.parametrize(
    "target",
    [
        "/%73leep",  # an engine decodes it
        "/sleep%2F",
        "//sleep",  # some servers merge slashes
        "/v1//models",
        "/./sleep",
        "/x/../sleep",
        "/x/..",
        "/x/.",
        "/x/%2e%2e/sleep",
        "/v1/models/%2e%2e",  # one segment here, a step up where it is decoded
        "/v1/models/.%2E",
        "/v1/models/..%2fsleep",
        "/v1/models/a%2F..%2F..%2Fsleep",
        "/v1/models/..%5Csleep",
        "/v1/models/%2Fsleep",
        "/v1/responses/%2e/cancel",
        "/sleep;x",  # parameters of a segment, to some
        "/sleep#x",
        "/sleep\\",
        "/sl\u00e9ep",
        "/a b",
        "/sleep\t",
        "/",
        "*",
        "",
        "sleep",
        "http://127.0.0.1:8000/sleep",  # absolute form
        "//evil/sleep",
        "@evil/",
        ":80/",
    ],
)
def test_no_spelling_leads_to_what_is_closed(target: str) -> None:
    found = OPEN.find(target)
    if target == "/":
        assert found.audience is Audience.SIDECAR
        return
    assert found == Route(Audience.NOBODY, "other", "the path must be plain: no escapes, no empty or dot segments")
    assert CLOSED.find(target).audience is Audience.NOBODY


def test_templates_are_what_a_metric_may_be_labelled_with() -> None:
    assert "/v1/models/{id}" in CLOSED.templates
    assert "/sleep" not in CLOSED.templates
    assert "/sleep" in ADMIN.templates
    assert "other" not in CLOSED.templates
    assert "other" in OPEN.templates
    assert not OWN_PATHS & set(OPEN.templates)
    assert CLOSED.templates == sorted(set(CLOSED.templates))


def test_an_engine_cannot_take_our_paths() -> None:
    routes = Routes(replace(VLLM, inference_paths=OWN_PATHS, admin_paths=OWN_PATHS), allow_admin=True, allow_all=True)
    assert {routes.find(path).audience for path in OWN_PATHS} == {Audience.SIDECAR}


TARGETS = st.text(st.sampled_from("/.%2eEfF5cCsl?;#\\*v1models~ é\0"), max_size=30) | st.lists(
    st.sampled_from(["/", "v1", "models", "sleep", "..", ".", "%2e", "%2F", "%73", "//", "slots", "0", "?", "health"])
).map("".join)


@given(TARGETS, st.booleans(), st.booleans())
def test_every_target_has_a_route_and_a_label_of_the_closed_set(target: str, admin: bool, everything: bool) -> None:
    routes = Routes(VLLM, allow_admin=admin, allow_all=everything)
    found = routes.find(target)
    assert bool(found.reason) == (found.audience is Audience.NOBODY)
    if found.audience is Audience.ENGINE:
        assert found.template in routes.templates
        path = target.partition("?")[0]
        assert path.startswith("/")
        assert ".." not in path.split("/")


@pytest.mark.parametrize("target", ["/sleep/", "/Sleep", "/SLEEP?level=2", "/health/", "/Metrics"])
def test_a_closed_path_written_otherwise_stays_closed(target: str) -> None:
    # Of a path that is known to be somebody's, an engine might one day make out what was meant.
    route = Routes(ENGINES["vllm"], allow_admin=False, allow_all=True).find(target)
    assert (route.audience, route.template) == (Audience.NOBODY, "other")
