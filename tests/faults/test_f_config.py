"""F. Configuration."""

# ruff: noqa: SIM117 - the scene, and what happens in it

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_engine import StartEngine
from tests.faults.scene import CHAT_BODY, chat_url, scene
from wings_proxy.cli import main
from wings_proxy.config.drift import ConfigFile
from wings_proxy.config.load import ConfigError, load_config
from wings_proxy.engines import ENGINES
from wings_proxy.handover.launch import render
from wings_proxy.handover.launch_spec import launch_spec

MODEL = {"MODEL_PATH": "/m"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENGINE_TYPE", "vlm"),
        ("ENGINE_PORT", "0"),
        ("ENGINE_PORT", "-1"),
        ("WINGS_PORT", "65536"),
        ("WINGS_PORT", "abc"),
        ("TP_SIZE", "0"),
        ("TP_SIZE", "1 "),
        ("MAX_MODEL_LEN", "4k"),
        ("WINGS_HEADER_TIMEOUT_SECONDS", "-1"),
        ("WINGS_MAX_CONNECTIONS", "many"),
        ("WINGS_CORS_ORIGINS", "example.com"),
        ("WINGS_METRICS_AUTH", "maybe"),
    ],
)
def test_f65_a_wrong_value_is_one_line_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**MODEL, name: value})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{name}=")


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [*a, *a]\n",
        b"a: &a [1,1,1]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n",
        b"model: !!python/object/apply:os.system ['touch ran']\n",
        b"model: {path: a}\nmodel: {path: b}\n",
        b"\tmodel: x\n",
        b"[1, 2]\n",
        b"x" * 10_000_000,
        b"\x00\xff",
    ],
)
def test_f65_a_hostile_file_is_an_error_and_runs_nothing(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wings.yaml").write_bytes(content)
    assert main(["check"], {**MODEL, "WINGS_CONFIG": str(tmp_path / "wings.yaml")}) == 2
    assert "WINGS_CONFIG=" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["wings.yaml"]


def test_f66_environment_over_file_and_empty_is_unset(tmp_path: Path) -> None:
    file = tmp_path / "wings.yaml"
    file.write_text("model: {path: /file}\nengine: {port: 7000}\n")
    config = load_config({"WINGS_CONFIG": str(file), "ENGINE_PORT": "7001", "MODEL_PATH": ""})
    assert (config.model_path, config.engine_port) == ("/file", 7001)


async def test_f67_a_model_the_engine_does_not_know_is_its_own_404(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        async with running.client.post(chat_url(running), json={**CHAT_BODY, "model": "other"}) as answer:
            assert answer.status == 404
            assert "X-Wings-Origin" not in answer.headers


def test_f68_a_missing_file_is_an_error_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="WINGS_CONFIG="):
        load_config({**MODEL, "WINGS_CONFIG": str(tmp_path / "missing")})
    file = tmp_path / "wings.yaml"
    file.write_text("model: {path: /a}\n")
    known = ConfigFile.read(file)
    file.write_text("model: {path: /b}\n")
    assert known.has_changed()


def test_f69_a_service_named_wings_does_not_break_the_next_pod() -> None:
    injected = {
        "WINGS_PORT": "tcp://10.0.0.1:9000",
        "WINGS_SERVICE_HOST": "10.0.0.1",
        "WINGS_SERVICE_PORT": "9000",
        "WINGS_PORT_9000_TCP": "tcp://10.0.0.1:9000",
        "ENGINE_PORT": "tcp://10.0.0.2:8000",
    }
    config = load_config({**MODEL, **injected})
    assert (config.port, config.engine_port) == (9000, 8000)


def test_f70_no_secret_reaches_the_script_or_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    environ = {
        **MODEL,
        "HF_TOKEN": "CANARY-1",
        "ENGINE_EXTRA_ARGS": '--api-key CANARY-2 --override \'{"api_key": "CANARY-3"}\'',
    }
    assert main(["check"], environ) == 0
    assert "CANARY" not in capfd.readouterr().out
    del environ["ENGINE_EXTRA_ARGS"]
    config = load_config(environ)
    assert b"CANARY" not in render(launch_spec(config, ENGINES["vllm"])).text


@pytest.mark.parametrize("flag", ["--hos", "--por", "--ho=1.2.3.4", "--po", "--h"])
def test_f65_host_and_port_stay_ours_in_every_spelling(flag: str) -> None:
    """argparse takes any unambiguous beginning of a flag; of the whole ones, ours come last and win."""
    with pytest.raises(ConfigError, match="ENGINE_EXTRA_ARGS"):
        load_config({**MODEL, "ENGINE_EXTRA_ARGS": f"{flag} 1"})


def test_f65_what_a_terminal_would_act_on_is_shown_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check"], {"MODEL_PATH": "/m\x1b[2J\u202e"}) == 0
    output = capfd.readouterr().out
    assert "\x1b" not in output
    assert "\u202e" not in output
