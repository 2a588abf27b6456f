"""I. Security."""

# ruff: noqa: SIM117 - the scene, and what happens in it

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import aiohttp.http_parser
import pytest
import yaml

from tests.fake_engine import FakeEngine, Fault, StartEngine
from tests.faults.scene import CHAT, CHAT_BODY, KEYS, ask, chat_url, everything, get, metric, newest, scene
from tests.sidecar import Sidecar
from tests.wire import EngineSide, proxy
from wings_proxy.engines import ENGINES
from wings_proxy.proxy.api_keys import ApiKeys
from wings_proxy.server.routes import Audience, Routes

ROOT = Path(__file__).parent.parent.parent
CLOSING = b"Connection: close\r\n"


@pytest.mark.parametrize(
    "target",
    [
        b"http://evil.example/v1/models",
        b"//evil.example/v1/models",
        b"/@evil.example",
        b":80/v1/models",
        b"evil.example:80",
    ],
)
async def test_i87_no_target_leads_elsewhere(fake_engine: StartEngine, tmp_path: Path, target: bytes) -> None:
    async with scene(fake_engine, tmp_path, WINGS_ALLOW_ALL_PATHS="true") as (running, engine):
        seen = len([r for r in engine.requests if r.target not in ("/health", "/v1/models")])
        answer = await ask(
            running, b"GET %b HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil\r\n%b\r\n" % (target, CLOSING)
        )
        assert answer.status in (400, 404)
        strange = len([r for r in engine.requests if r.target not in ("/health", "/v1/models")]) - seen
        # A path of the engine's own host, however odd: it answers 404 itself.
        assert strange == (target == b"/@evil.example")


async def test_i87_the_host_the_engine_sees_is_its_own_and_redirects_are_not_followed(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.STATUS, "fault_status": 307}) as (running, engine):
        async with running.client.post(
            chat_url(running), json=CHAT_BODY, headers={"Host": "evil.example"}, allow_redirects=False
        ) as answer:
            assert answer.status == 307
        assert ("host", f"127.0.0.1:{engine.port}") in [(k.lower(), v) for k, v in newest(engine).headers]


@asynccontextmanager
async def locked(fake_engine: StartEngine, tmp_path: Path, **environ: Any) -> AsyncIterator[tuple[Sidecar, FakeEngine]]:
    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "volume").mkdir()
    keys = str(tmp_path / "keys")
    async with scene(fake_engine, tmp_path / "volume", WINGS_API_KEYS_FILE=keys, **environ) as both:
        yield both


def spellings(path: str) -> list[str]:
    return [
        path,
        path + "/",
        path.upper(),
        path.capitalize(),
        "/" + path,
        path + ";x",
        path.replace("/", "//"),
        path.replace("/", "/./"),
        "/v1/.." + path,
        "/v1/%2e%2e" + path,
        path[:-1] + f"%{ord(path[-1]):02x}",
        path.replace("/", "/%2e/"),
        path.replace("/", "%2f"),
        path + "%20",
        path + "?x",
        path + "/..;/",
        path.replace("/", "\\"),
    ]


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_i88_administration_is_closed_in_every_spelling(name: str) -> None:
    for allow_all in (False, True):
        routes = Routes(ENGINES[name], allow_admin=False, allow_all=allow_all)
        for path in ENGINES[name].admin_paths:
            if "*" in path:
                continue
            for spelling in spellings(path):
                assert routes.find(spelling).audience is not Audience.ENGINE, spelling


async def test_i89_a_client_cannot_name_away_what_we_add(fake_engine: StartEngine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("engine-key")
    volume = tmp_path / "volume"
    volume.mkdir()
    async with scene(fake_engine, volume) as (running, engine):
        named = b"Connection: close, x-request-id, host, content-length, content-type"
        answer = await get(running, b"/v1/models", b"X-Request-Id: mine", named)
        assert answer.one(b"X-Request-Id") == b"mine"
        [arrived] = [request for request in engine.requests if request.header("x-request-id") == "mine"]
        assert arrived.header("host") is not None
        body = json.dumps(CHAT_BODY).encode()
        own = b"Content-Length: %d\r\nContent-Type: application/json" % len(body)
        answer = await ask(running, b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n%b\r\n\r\n%b" % (CHAT, named, own, body))
        assert answer.status == 200
        [arrived] = [request for request in engine.requests if request.method == "POST"]
        assert arrived.header("content-type") == "application/json"
        assert arrived.header("content-length") == str(len(body))


@pytest.mark.parametrize(
    "field",
    [
        b"A: b",
        b"Authorization: Bearer wrong",
        b"Authorization: Basic Zmlyc3Qta2V5",
        b"Authorization: first-key",
        b"Authorization: Bearer",
        b"Authorization: Bearer \xff\xe4",
        b"x-api-key: wrong",
        b"Authorization: Bearer first-key\r\nAuthorization: Bearer wrong",
    ],
)
async def test_i90_no_key_of_ours_is_a_401(fake_engine: StartEngine, tmp_path: Path, field: bytes) -> None:
    async with locked(fake_engine, tmp_path) as (running, engine):
        for path in (b"/v1/models", b"/docs", b"/openapi.json", b"/"):
            answer = await get(running, path, field)
            assert answer.status == 401
            assert answer.all(b"WWW-Authenticate")[0] == b"Bearer"
            assert json.loads(answer.body)["error"]["code"] == "unauthorized"
        assert not [r for r in engine.requests if any(v == "Bearer wrong" for _, v in r.headers)]
        assert await metric(running, 'wings_api_errors_total{code="unauthorized"}') == 4


@pytest.mark.parametrize(
    "field", [b"Authorization: Bearer second-key", b"authorization: bEARER first-key", b"X-API-Key: first-key"]
)
async def test_i90_a_key_of_ours_opens_and_goes_no_further(
    fake_engine: StartEngine, tmp_path: Path, field: bytes
) -> None:
    async with locked(fake_engine, tmp_path) as (running, engine):
        assert (await get(running, b"/v1/models", field)).status == 200
        assert (await get(running, b"/docs", field)).status == 200
        names = [name.lower() for request in engine.requests for name, _ in request.headers]
        assert "authorization" not in names
        assert "x-api-key" not in names


@pytest.mark.parametrize("offered", [b"first-key", b"second-key", b"first-kez", b"x", b"first-key-and-more"])
def test_i90_how_long_a_look_takes_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: bytes
) -> None:
    """Digests of one length are compared in constant time, always with every key, wherever it matches."""
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    known = ApiKeys(keys)
    asyncio.run(known.load())
    compared = list[tuple[int, int]]()

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", noted)
    assert (known([offered]) is None) == (offered in {b"first-key", b"second-key"})
    assert compared == [(32, 32)] * 2


async def test_i90_probes_are_open_and_metrics_as_configured(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with locked(fake_engine, tmp_path, WINGS_METRICS_AUTH="true") as (running, _):
        for path in (b"/health", b"/livez", b"/readyz", b"/startupz", b"/livez/engine", b"/engine/status"):
            assert (await get(running, path)).status != 401
        assert (await get(running, b"/metrics")).status == 401
        assert (await get(running, b"/metrics", b"Authorization: Bearer first-key")).status == 200


@pytest.mark.parametrize("given", [b"a b", b"x" * 200, b"\xff", b"a;b", b"", b"<script>"])
async def test_i91_a_hostile_request_id_is_replaced(fake_engine: StartEngine, tmp_path: Path, given: bytes) -> None:
    async with scene(fake_engine, tmp_path) as (running, _engine):
        answer = await get(running, b"/v1/models", b"X-Request-Id: " + given)
        assert re.fullmatch(rb"[0-9a-f]{32}", answer.one(b"X-Request-Id") or b"")


@pytest.mark.parametrize("fault", [Fault.CR_HEADER, Fault.NUL_HEADER])
async def test_i91_the_engine_cannot_split_an_answer(fake_engine: StartEngine, tmp_path: Path, fault: Fault) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": fault}) as (running, _):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            assert answer.status == 502


async def test_i92_the_docs_load_nothing_from_elsewhere(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        answer = await get(running, b"/docs?url=https://evil.example/spec&configUrl=https://evil.example")
        policy = answer.one(b"Content-Security-Policy") or b""
        assert b"default-src 'none'" in policy or b"default-src 'self'" in policy
        assert b"frame-ancestors 'none'" in policy
        assert answer.one(b"X-Content-Type-Options") == b"nosniff"
        assert b"evil.example" not in answer.body
        assert not re.search(rb"(?:src|href)=.https?://", answer.body)


ORIGIN = b"Origin: https://page.example"


async def test_i93_without_cors_no_page_may_read(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        for path in (b"/v1/models", b"/health", b"/nope"):
            answer = await get(running, path, ORIGIN)
            assert not [name for name, _ in answer.fields if name.lower().startswith(b"access-control")]


async def test_i93_an_engine_that_allows_every_page_is_not_believed() -> None:
    async def allows_all(engine: EngineSide) -> None:
        await engine.request()
        await engine.answer(fields=b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n")

    async with proxy(allows_all) as running:
        client = await running.client()
        await client.get(fields=ORIGIN + b"\r\n")
        answer = await client.answer()
        assert not [name for name, _ in answer.fields if name.lower().startswith(b"access-control")]


async def test_i93_with_it_named_pages_may(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_CORS_ORIGINS="https://page.example") as (running, engine):
        for path in (b"/v1/models", b"/health", b"/nope"):
            answer = await get(running, path, ORIGIN)
            assert answer.one(b"Access-Control-Allow-Origin") == b"https://page.example", path
            assert (await get(running, path, b"Origin: https://evil.example")).one(
                b"Access-Control-Allow-Origin"
            ) is None
        seen = len(engine.requests)
        preflight = await ask(
            running,
            b"OPTIONS %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\nAccess-Control-Request-Method: POST\r\n\r\n"
            % (CHAT, ORIGIN),
        )
        assert preflight.status == 204
        assert b"Authorization" in (preflight.one(b"Access-Control-Allow-Headers") or b"")
        assert not [r for r in engine.requests[seen:] if r.method == "OPTIONS"]


async def test_i94_a_compression_bomb_stays_compressed(fake_engine: StartEngine, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10 * 1024 * 1024))
    async with scene(fake_engine, tmp_path) as (running, engine):
        async with running.client.post(chat_url(running), data=bomb, headers={"Content-Encoding": "gzip"}) as answer:
            await answer.read()
        assert newest(engine).body == bomb


@pytest.mark.parametrize("sent", [b"GET /livez", b"GET /nope", b"BAD", b"POST /health", b"GET /v1/models"])
async def test_i95_no_answer_of_ours_names_a_version(fake_engine: StartEngine, tmp_path: Path, sent: bytes) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        received = await everything(running, sent + b" HTTP/1.1\r\nHost: x\r\n" + CLOSING + b"\r\n")
        assert not re.search(rb"(?i)aiohttp|python/?\d", received)


async def test_i96_an_error_tells_nothing_of_the_inside(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.GARBAGE}) as (running, _):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            text = await answer.text()
        assert not re.search(r"Traceback|/work|/usr|\.py|Error\(|0x", text)


def pods_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod's specification in a manifest, however deep."""
    if isinstance(node, dict) and isinstance(node.get("containers"), list):
        yield node
    for below in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from pods_in(below)


def test_i97_manifests_ask_for_no_rights() -> None:
    """What is built of them: `tests/deploy`."""
    found = [
        (pod, container)
        for path in sorted((ROOT / "deploy").rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text("utf-8"))
        for pod in pods_in(document)
        for container in pod["containers"]
        if container["name"] == "wings-infer" and "image" in container
    ]
    assert found
    for pod, container in found:
        assert pod["automountServiceAccountToken"] is False
        rights = container["securityContext"]
        assert (rights["runAsNonRoot"], rights["readOnlyRootFilesystem"]) == (True, True)
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
    assert re.search(r"^USER \S+", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)


def test_i98_an_aiohttp_with_known_holes_is_not_installed_and_its_parser_is_the_one_in_c() -> None:
    text = (ROOT / "setup.cfg").read_text()
    assert re.search(r"^    aiohttp>=3\.14\.3", text, re.MULTILINE)
    assert requires("aiohttp") is not None
    assert aiohttp.http_parser.HttpRequestParser.__module__ == "aiohttp._http_parser"


async def test_i99_an_upgrade_is_no_way_around_the_list(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        sent = (
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            b"GET /sleep HTTP/1.1\r\n\r\n"
        )
        assert b" 501 " in await everything(running, sent)
        assert not [r for r in engine.requests if r.target == "/sleep"]


@pytest.mark.parametrize(
    "path", [b"/drain", b"/quitquitquit", b"/internal/drain-status", b"/kv_event_sources", b"/admin"]
)
async def test_i100_nothing_a_stranger_could_stop_us_with(
    fake_engine: StartEngine, tmp_path: Path, path: bytes
) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        for method in (b"GET", b"POST"):
            answer = await ask(
                running, b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%b\r\n" % (method, path, CLOSING)
            )
            assert answer.status == 404
        assert (await running.get("/readyz"))[0] == 200
