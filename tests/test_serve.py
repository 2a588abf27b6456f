"""The whole sidecar in one loop: real sockets, a real directory, the fake engine; signals are real too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests.fake_engine import StartEngine
from tests.ports import free_port
from tests.sidecar import HANG_SECONDS, RUN, Sidecar, chat, sidecar
from tests.stream_client import to_the_end
from wings_proxy.config.load import ConfigError, resolve
from wings_proxy.handover.volume import Volume
from wings_proxy.proxy.api_keys import ApiKeys
from wings_proxy.serve import run_serve


async def test_from_nothing_to_a_streamed_answer(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(boot_seconds=0.5, tokens=20)
    async with sidecar(tmp_path, engine.port) as running:
        await running.health(lambda body: body["state"] != "waiting")
        script = tmp_path / "start_command.sh"
        assert b"--max-num-seqs" in script.read_bytes()
        assert (await running.get("/startupz"))[0] == 200
        assert (await running.get("/readyz"))[0] == 503
        refused, body = await running.get("/v1/models")
        assert (refused, body["error"]["code"]) == (503, "engine_not_ready")
        await running.health(lambda body: body["state"] == "ready")
        assert (await running.get("/readyz"))[0] == 200
        events = await chat(running)
        assert events[-1] == "[DONE]"
        assert len(events) > 20
        status, page = await running.get("/metrics")
        assert status == 200
        assert 'wings_requests_total{code="200",route="/v1/chat/completions"} 1.0' in page
        assert 'wings_engine_state{state="ready"} 1.0' in page


async def test_a_run_of_the_script_is_followed_to_its_end(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await running.health(lambda body: body["state"] == "ready")
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        assert not (tmp_path / "hold").exists()
        await chat(running)
        assert (tmp_path / "hold").read_text().strip() == RUN
        running.status("stop_requested", asked=True)
        await running.health(lambda body: body["state"] in ("stopping", "starting"))
        async with asyncio.timeout(40):
            while (tmp_path / "hold").exists():  # noqa: ASYNC110 - a file rings no bell
                await asyncio.sleep(0.01)
        refused, body = await running.get("/v1/models")
        assert (refused, body["error"]["code"]) == (503, "draining")


async def test_a_crash_is_named_and_survived(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        await engine.close()
        running.status("exited", code=137)
        failed = await running.health(lambda body: body["state"] == "failed")
        assert failed["last_failure"]["reason"] == "killed"
        assert failed["last_failure"]["exit_code"] == 137
        refused, body = await running.get("/v1/models")
        assert (refused, body["error"]["code"]) == (503, "engine_failed")
        # No more than that: who may ask for answers need not be who may read /health.
        assert body["error"]["message"] == "The engine failed: killed."
        running.status("running", run=RUN.replace("1", "2"))
        again = await running.health(lambda body: body["state"] == "loading")
        assert again["restarts"] == 1
        assert again["last_failure"]["reason"] == "killed"
        # Once, and loud enough for whoever reads errors only.
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert [record.getMessage() for record in errors] == [
            "engine failed: the engine was ended by signal 9 (SIGKILL)"
        ]
        fields = vars(errors[0])["fields"]
        assert "OOMKilled" in fields.pop("hint")
        assert fields == {"reason": "killed", "exit_code": 137, "run": RUN}


async def test_a_stream_in_flight_is_finished_before_we_leave(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=20, token_seconds=0.02)
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        stream = asyncio.create_task(chat(running), name="client")
        await engine.until(lambda: engine.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await running.health(lambda body: body["state"] == "draining")
        assert (await running.get("/readyz"))[0] == 503
        assert (await running.get("/livez"))[0] == 200
        assert (tmp_path / "hold").exists()
        events = await stream
        assert events[-1] == "[DONE]"
        assert await running.task == 0
        assert not (tmp_path / "hold").exists()


async def test_a_client_that_reads_slowly_has_its_whole_answer_before_we_leave(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    """The engine is done with it, and so are we, but for what lies in our buffers."""
    engine = await fake_engine(tokens=500, token_seconds=0.0)
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        request = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 500}
        relayed = asyncio.Event()
        reading = asyncio.create_task(to_the_end(running.port, request, held_until=relayed), name="client")
        async with asyncio.timeout(HANG_SECONDS):
            while 'code="200",route="/v1/chat/completions"} 1.0' not in (await running.get("/metrics"))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await running.health(lambda body: body["state"] == "draining")
        done, _ = await asyncio.wait({running.task}, timeout=0.3)
        assert not done
        relayed.set()
        received, whole = await reading
        assert whole
        assert b"[DONE]" in received
        assert await running.task == 0


async def test_a_request_that_waits_when_we_are_told_to_stop_ends_its_connection(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=2, token_seconds=0.1)
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        url = f"http://127.0.0.1:{running.port}/v1/chat/completions"
        asked = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        waiting = asyncio.create_task(answer_head(running, url, asked), name="client")
        await engine.until(lambda: engine.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await waiting == (200, "close")
        assert await running.task == 0


async def answer_head(running: Sidecar, url: str, asked: dict[str, object]) -> tuple[int, str | None]:
    async with running.client.post(url, json=asked) as answer:
        await answer.read()
        return answer.status, answer.headers.get("Connection")


async def test_a_stream_longer_than_the_drain_gets_an_honest_end(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=10_000, token_seconds=0.02)
    async with sidecar(tmp_path, engine.port, WINGS_DRAIN_SECONDS="0.2") as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        request = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 5000}
        first = asyncio.Event()
        reading = asyncio.create_task(to_the_end(running.port, request, first), name="client")
        await first.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        received, whole = await reading
        assert not whole
        assert await running.task == 0
        last = received.rstrip().rsplit(b"\n\n", 1)[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert b"[DONE]" not in received


async def test_the_second_signal_ends_at_once(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wings_proxy.stop_requests._ECHO_SECONDS", 0.0)
    engine = await fake_engine(tokens=10_000, token_seconds=0.02)
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        stream = asyncio.create_task(chat(running, max_tokens=5000), name="client")
        await engine.until(lambda: engine.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await running.health(lambda body: body["state"] == "draining")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait([running.task], timeout=40)
        # The task that runs the sidecar is cancelled: as a program, it ends with 143.
        assert running.task.cancelled()
        # Nothing the engine's container would have to wait for.
        assert not (tmp_path / "hold").exists()
        with pytest.raises(aiohttp.ClientError):
            await stream


async def test_a_signal_that_comes_twice_at_once_is_one(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=20, token_seconds=0.02)
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        stream = asyncio.create_task(chat(running), name="client")
        await engine.until(lambda: engine.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (await stream)[-1] == "[DONE]"
        assert await running.task == 0


async def test_new_keys_are_in_force_without_a_restart(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Secret changes as a volume of Kubernetes does: by a link to another directory."""
    watch = ApiKeys.watch
    monkeypatch.setattr(ApiKeys, "watch", lambda keys: watch(keys, poll_seconds=0.02))
    secret, engine = tmp_path / "secret", await fake_engine()
    for name in ("old", "new"):
        (secret / f"..{name}").mkdir(parents=True)
        (secret / f"..{name}" / "keys").write_text(f"{name}-key\n")
    (secret / "..data").symlink_to("..old")
    (secret / "keys").symlink_to("..data/keys")
    (tmp_path / "volume").mkdir()
    async with sidecar(tmp_path / "volume", engine.port, WINGS_API_KEYS_FILE=str(secret / "keys")) as running:
        await running.health(lambda body: body["state"] == "ready")

        async def asked_with(key: str) -> int:
            url, fields = f"http://127.0.0.1:{running.port}/v1/models", {"Authorization": f"Bearer {key}"}
            async with running.client.get(url, headers=fields) as answer:
                return answer.status

        assert [await asked_with(key) for key in ("old-key", "new-key")] == [200, 401]
        (secret / "..other").symlink_to("..new")
        (secret / "..other").rename(secret / "..data")
        async with asyncio.timeout(HANG_SECONDS):
            while await asked_with("new-key") == 401:  # noqa: ASYNC110 - a file rings no bell
                await asyncio.sleep(0.01)
        assert [await asked_with(key) for key in ("old-key", "new-key")] == [401, 200]


async def test_a_volume_that_hangs_does_not_keep_us_from_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Volume) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Volume, "release_hold", hang)
    monkeypatch.setattr("wings_proxy.lifecycle.gate._REMOVAL_SECONDS", 0.05)
    async with sidecar(tmp_path, free_port()) as running:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait([running.task], timeout=40)
        assert running.task.done()


async def test_hangup_is_ignored(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        os.kill(os.getpid(), signal.SIGHUP)
        await running.health(lambda body: body["state"] == "ready")


async def test_what_is_not_ours_and_not_the_engines_is_not_found(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await running.health(lambda body: body["state"] == "ready")
        for path in ("/sleep", "/nope", "/v1/../metrics", "/v1/%2e%2e/health", "//health", "/HEALTH"):
            async with running.client.get(URL(f"http://127.0.0.1:{running.port}{path}", encoded=True)) as answer:
                body = await answer.json()
                assert (answer.status, body["error"]["code"]) == (404, "not_found"), path
                assert answer.headers["X-Wings-Origin"] == "proxy"
                assert answer.headers["Server"] == "wings-infer"
        async with running.client.post(f"http://127.0.0.1:{running.port}/health") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
            assert (await answer.json())["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/models?CANARY HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer CANARY\0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer CANARY" + b"a" * 9000 + b"\r\n\r\n",
        b'GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n"CANARY"',
        b"GET http://[CANARY/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CANARY\x1b[31m\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_neither_echoed_nor_logged(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.set_level("DEBUG")
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(sent)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b" 400 Bad Request\r\n" in head
        assert b"Server: wings-infer" in head
        assert json.loads(body)["error"]["code"] == "invalid_request"
        assert b"CANARY" not in head + body
    assert "not HTTP" in caplog.text
    assert "CANARY" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = {"WINGS_PORT": str(port), "WINGS_HOST": "127.0.0.1", "MODEL_PATH": "/m"}
        ended = subprocess.run(
            [sys.executable, "-m", "wings_proxy"],
            env={**os.environ, **environ, "SHARED_VOLUME_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"WINGS_PORT={port} on WINGS_HOST=127.0.0.1: cannot listen: Address already in use; "
        "end the process that has it, or set WINGS_PORT to another port\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot be read: No such file"), (b"", "no key in it"), (b"one\ntwo\n", "must hold one key, holds 2")],
)
def test_a_bad_engine_key_file_is_a_configuration_error(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    resolved = resolve({"MODEL_PATH": "/m", "WINGS_ENGINE_API_KEY_FILE": str(file)})
    with pytest.raises(ConfigError, match=f"WINGS_ENGINE_API_KEY_FILE={file}: .*{complaint}"):
        run_serve(resolved)
