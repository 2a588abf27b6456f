"""Environment over file over defaults, and everything wrong said in one go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from wings_proxy.config.load import ConfigError, config_path, load_config, resolve
from wings_proxy.config.settings import SETTINGS, Config

MODEL = {"MODEL_PATH": "/models/Qwen"}
MIB = 1024 * 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "wings.yaml"


def load(environ: Mapping[str, str] | None = None, **more: str) -> Config:
    return load_config({**MODEL, **(environ or {}), **more})


def problems(environ: Mapping[str, str] | None = None, **more: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(environ, **more)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    return caught.value.problems


def in_file(file: Path, content: str) -> dict[str, str]:
    file.write_text(content)
    return {"WINGS_CONFIG": str(file)}


def test_only_the_model_is_required() -> None:
    assert load() == Config(
        engine_type="vllm",
        engine_port=8000,
        port=9000,
        host="",
        model_path="/models/Qwen",
        model_name="Qwen",
        served_model_name="",
        tp_size=1,
        max_model_len=4096,
        max_num_seqs=32,
        trust_remote_code=True,
        engine_extra_args=(),
        engine_env=(),
        engine_api_key_file="",
        shared_volume_path="/shared-volume",
        api_keys_file="",
        allow_admin=False,
        allow_all_paths=False,
        max_inflight=0,
        max_body_bytes=64 * MIB,
        connect_timeout_seconds=5.0,
        first_byte_timeout_seconds=None,
        idle_timeout_seconds=None,
        write_stall_seconds=60.0,
        probe_interval_seconds=5.0,
        probe_timeout_seconds=5.0,
        probe_failures=3,
        probe_successes=1,
        startup_timeout_seconds=300.0,
        engine_kill_seconds=120.0,
        load_kill_seconds=None,
        quiet_seconds=5.0,
        drain_seconds=60.0,
        engine_stop_seconds=30.0,
        grace_period_seconds=120.0,
        event_loop="uvloop",
        log_format="json",
        log_level="info",
        access_log=True,
    )


def test_without_a_model_nothing_starts() -> None:
    for environ in ({}, {"MODEL_PATH": ""}):
        with pytest.raises(ConfigError, match=r"^MODEL_PATH is not set: path or hub id given to the engine$"):
            load_config(environ)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/models/Qwen", "Qwen"), ("/models/Qwen/", "Qwen"), ("Qwen/Qwen3-8B", "Qwen3-8B"), ("gpt2", "gpt2"), ("/", "/")],
)
def test_a_model_is_named_after_the_last_part_of_its_path(path: str, name: str) -> None:
    assert load(MODEL_PATH=path).model_name == name
    assert load(MODEL_PATH=path, MODEL_NAME="r1").model_name == "r1"


def test_environment_over_file_over_default_and_each_with_its_source(file: Path) -> None:
    environ = in_file(file, "engine: {port: 8001, tp_size: 2}\nmodel: {path: /other, name: r1}\n")
    resolved = resolve({**MODEL, "TP_SIZE": "4", "ENGINE_PORT": "", **environ})
    assert (resolved.config.engine_port, resolved.config.tp_size, resolved.config.max_num_seqs) == (8001, 4, 32)
    assert (resolved.config.model_path, resolved.config.model_name) == ("/models/Qwen", "r1")
    assert resolved.sources["engine_port"] == "file engine.port"
    assert resolved.sources["tp_size"] == "env TP_SIZE"
    assert resolved.sources["max_num_seqs"] == "default"
    assert resolved.sources["model_path"] == "env MODEL_PATH"
    assert resolved.sources.keys() == {field.name for field in dataclasses.fields(Config)}


def test_a_whole_file_in_place_of_the_environment(file: Path) -> None:
    content = """
engine:
  type: sglang
  extra_args: ["--chat-template", "/tmp/a b.jinja"]
  trust_remote_code: no
  env: {NCCL_DEBUG: INFO, TOKENIZERS_PARALLELISM: false}
model: {path: Qwen/Qwen3-8B, max_len: 8192}
server: {max_body_bytes: 1MiB}
timeouts: {first_byte_seconds: off, idle_seconds: 2.5}
log: {format: ~}
"""
    config = load_config(in_file(file, content))
    assert config.engine_type == "sglang"
    assert config.engine_extra_args == ("--chat-template", "/tmp/a b.jinja")
    assert config.trust_remote_code is False
    assert config.engine_env == (("NCCL_DEBUG", "INFO"), ("TOKENIZERS_PARALLELISM", "false"))
    assert (config.model_path, config.model_name, config.max_model_len) == ("Qwen/Qwen3-8B", "Qwen3-8B", 8192)
    assert config.max_body_bytes == MIB
    assert (config.first_byte_timeout_seconds, config.idle_timeout_seconds) == (None, 2.5)
    assert config.log_format == "json"


def test_every_empty_variable_counts_as_unset() -> None:
    empty = {setting.env: "" for setting in SETTINGS if setting.env} | {"WINGS_CONFIG": "", "WINGS_NONSENSE": ""}
    assert load_config({**empty, **MODEL}) == load()


def test_the_place_of_the_file() -> None:
    assert config_path({"WINGS_CONFIG": "/etc/wings.yaml"}) == Path("/etc/wings.yaml")
    assert config_path({"WINGS_CONFIG": ""}) is None
    assert config_path({}) is None


PORT_RANGE = "must be a whole number from 1 to 65535"
TIMES = "WINGS_QUIET_SECONDS 5 + WINGS_DRAIN_SECONDS"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENGINE_TYPE", "tgi", "ENGINE_TYPE=tgi: must be one of llamacpp, sglang, vllm"),
        ("ENGINE_TYPE", "vLLM", "ENGINE_TYPE=vLLM: must be one of llamacpp, sglang, vllm"),
        ("ENGINE_PORT", "0", f"ENGINE_PORT=0: {PORT_RANGE}"),
        ("ENGINE_PORT", "-1", f"ENGINE_PORT=-1: {PORT_RANGE}"),
        ("ENGINE_PORT", "65536", f"ENGINE_PORT=65536: {PORT_RANGE}"),
        ("WINGS_PORT", "abc", f"WINGS_PORT=abc: {PORT_RANGE}"),
        ("WINGS_PORT", "9000 ", f"WINGS_PORT=9000 : {PORT_RANGE}"),
        ("TP_SIZE", "0", "TP_SIZE=0: must be a whole number from 1 to 1024"),
        ("TP_SIZE", "1 ", "TP_SIZE=1 : must be a whole number from 1 to 1024"),
        ("MAX_MODEL_LEN", "4k", "MAX_MODEL_LEN=4k: must be a whole number from 1 to 100000000"),
        ("MAX_NUM_SEQS", "0", "MAX_NUM_SEQS=0: must be a whole number from 1 to 100000"),
        ("TRUST_REMOTE_CODE", "ja", "TRUST_REMOTE_CODE=ja: must be true or false (or 1/0, yes/no, on/off)"),
        ("MODEL_PATH", "/a\nb", "MODEL_PATH=/a\\nb: must not contain LF"),
        ("MODEL_PATH", "/a\rb", "MODEL_PATH=/a\\rb: must not contain CR"),
        ("MODEL_NAME", "a\0b", "MODEL_NAME=a\\x00b: must not contain NUL"),
        ("MODEL_PATH", "/a\udcff", "MODEL_PATH=/a\\udcff: must be valid UTF-8"),
        ("SERVED_MODEL_NAME", "a\n", "SERVED_MODEL_NAME=a\\n: must not contain LF"),
        ("SHARED_VOLUME_PATH", "/v\n", "SHARED_VOLUME_PATH=/v\\n: must not contain LF"),
        ("ENGINE_EXTRA_ARGS", "a 'b", "ENGINE_EXTRA_ARGS=a 'b: cannot be split into arguments: no closing quotation"),
        ("ENGINE_EXTRA_ARGS", "a\nb", "ENGINE_EXTRA_ARGS=a\\nb: must not contain LF"),
        (
            "WINGS_MAX_BODY_BYTES",
            "1MB",
            "WINGS_MAX_BODY_BYTES=1MB: must be a number of bytes from 1 to 1024GiB, such as",
        ),
        ("WINGS_QUIET_SECONDS", "5s", "WINGS_QUIET_SECONDS=5s: must be a number of seconds from 0 to 3600"),
        (
            "WINGS_IDLE_TIMEOUT_SECONDS",
            "0",
            "WINGS_IDLE_TIMEOUT_SECONDS=0: must be a number of seconds from 0.01 to 86",
        ),
        ("WINGS_LOG_LEVEL", "INFO", "WINGS_LOG_LEVEL=INFO: must be one of debug, info, warning, error"),
        (
            "WINGS_PORT",
            "8000",
            "WINGS_PORT=8000: is also ENGINE_PORT; the sidecar and the engine share one network, give",
        ),
        (
            "ENGINE_PORT",
            "9000",
            "WINGS_PORT=9000: is also ENGINE_PORT; the sidecar and the engine share one network, give",
        ),
        (
            "WINGS_DRAIN_SECONDS",
            "75.5",
            f"WINGS_GRACE_PERIOD_SECONDS=120: must be at least 120.5 = {TIMES} 75.5 + 5 + WINGS_ENGINE_",
        ),
        (
            "WINGS_GRACE_PERIOD_SECONDS",
            "30",
            f"WINGS_GRACE_PERIOD_SECONDS=30: must be at least 105 = {TIMES} 60 + 5 + WINGS_ENGINE_STOP_SECONDS 30 + 5,",
        ),
        ("WINGS_PROT", "9001", "WINGS_PROT=9001: no such variable; did you mean WINGS_PORT?"),
        ("WINGS_ENGINE_TYPE", "vllm", "WINGS_ENGINE_TYPE=vllm: no such variable; did you mean ENGINE_TYPE?"),
        ("WINGS_DRAIN_TIMEOUT", "9", "WINGS_DRAIN_TIMEOUT=9: no such variable; did you mean WINGS_"),
        ("WINGS_", "x", "WINGS_=x: no such variable"),
        ("WINGS_A\nB", "x", "WINGS_A\\nB=x: no such variable"),
        ("WINGS_API_KEY", "sk-1", "WINGS_API_KEY: no such variable; did you mean WINGS_API_KEYS_FILE?"),
        ("WINGS_CONFIG", "/absent", "WINGS_CONFIG=/absent: cannot be read: No such file or directory"),
    ],
)
def test_one_wrong_variable_is_one_line_naming_it(name: str, value: str, problem: str) -> None:
    (line,) = problems({name: value})
    assert line.startswith(problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("engine: {port: 0}", f"engine.port=0: {PORT_RANGE}"),
        ("engine: {port: [8000]}", f"engine.port=['8000']: {PORT_RANGE}"),
        ("engine: {type: no}", "engine.type=no: must be one of llamacpp, sglang, vllm"),
        ("model: {name: {a: b}}", "model.name={'a': 'b'}: must be a text on one line"),
        ('model: {name: "a\\nb"}', "model.name=a\\nb: must not contain LF"),
        ('model: {name: "a\\0b"}', "model.name=a\\x00b: must not contain NUL"),
        ('model: {name: "\\ud800"}', "model.name=\\ud800: must be valid UTF-8"),
        (
            "engine: {extra_args: {--seed: 1}}",
            "engine.extra_args={'--seed': '1'}: must be a list of texts, one argument",
        ),
        ("engine: {extra_args: |\n    --a\n}", "is not"),
        ("engine: {env: [A=1]}", "engine.env: must be a mapping of variable names to texts"),
        ("engine: {env: {A: }}", "engine.env: the value of A must be a text"),
        (
            "engine: {env: {HF_TOKEN: hunter2}}",
            "engine.env: HF_TOKEN looks like a secret, and this file is readable in",
        ),
        ("server: {port: 8000}", "WINGS_PORT=8000: is also ENGINE_PORT"),
        ("engine: {prot: 8000}", "engine.prot: no such key; did you mean engine.port?"),
    ],
)
def test_one_wrong_key_is_one_line_naming_it(file: Path, content: str, problem: str) -> None:
    (line,) = problems(in_file(file, content))
    # What concerns the file as a whole says which file.
    line = line.removeprefix(f"WINGS_CONFIG={file}: ")
    assert line.startswith(problem)


def test_everything_wrong_is_said_in_one_go(file: Path) -> None:
    environ = in_file(file, "engine: {prot: 1, tp_size: 0}\ndrain: {drain_seconds: 500}\n")
    environ |= {"MODEL_PATH": "", "WINGS_PORT": "8000", "WINGS_PROT": "1", "WINGS_LOG_LEVEL": "loud"}
    assert problems(environ) == (
        f"WINGS_CONFIG={file}: engine.prot: no such key; did you mean engine.port?",
        "WINGS_PROT=1: no such variable; did you mean WINGS_PORT?",
        "MODEL_PATH is not set: path or hub id given to the engine",
        "engine.tp_size=0: must be a whole number from 1 to 1024",
        "WINGS_LOG_LEVEL=loud: must be one of debug, info, warning, error",
        "WINGS_PORT=8000: is also ENGINE_PORT; the sidecar and the engine share one network, give them different ports",
        (
            f"WINGS_GRACE_PERIOD_SECONDS=120: must be at least 545 = {TIMES} 500 + 5 + "
            "WINGS_ENGINE_STOP_SECONDS 30 + 5, or the kubelet cuts the end short"
        ),
    )


def test_a_wrong_value_is_not_reported_a_second_time_as_a_contradiction() -> None:
    assert problems(WINGS_PORT="8000", ENGINE_PORT="x") == (f"ENGINE_PORT=x: {PORT_RANGE}",)
    assert problems(WINGS_GRACE_PERIOD_SECONDS="10", WINGS_DRAIN_SECONDS="x") == (
        "WINGS_DRAIN_SECONDS=x: must be a number of seconds from 0 to 86400",
    )


def test_of_an_unreadable_file_it_is_not_said_what_it_fails_to_set() -> None:
    assert problems({"WINGS_CONFIG": "/absent", "MODEL_PATH": "", "WINGS_PORT": "8000"}) == (
        "WINGS_CONFIG=/absent: cannot be read: No such file or directory",
    )


def test_grace_period_of_exactly_what_is_needed_is_enough() -> None:
    assert load(WINGS_GRACE_PERIOD_SECONDS="105").hold_bound_seconds == 70.0


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENGINE_TYP", "ENGINE_TYPE"),
        ("MODLE_NAME", "MODEL_NAME"),
        ("model_name", "MODEL_NAME"),
        ("MAX_MODEL_LENGTH", "MAX_MODEL_LEN"),
        ("WING_PORT", "WINGS_PORT"),
        ("QUIET_SECONDS", "WINGS_QUIET_SECONDS"),
        ("API_KEYS_FILE", "WINGS_API_KEYS_FILE"),
    ],
)
def test_a_variable_that_is_nearly_ours_is_told_and_stops_nobody(name: str, meant: str) -> None:
    resolved = resolve({**MODEL, name: "7"})
    assert resolved.warnings == (f"{name}=7: is not read; did you mean {meant}?",)


def test_it_is_told_among_what_is_wrong() -> None:
    assert problems({"MODEL_PATH": "", "MODLE_PATH": "/m"}) == (
        "MODEL_PATH is not set: path or hub id given to the engine",
        "MODLE_PATH=/m: is not read; did you mean MODEL_PATH?",
    )


def test_its_value_is_not_told_where_it_looks_like_a_secret() -> None:
    assert resolve({**MODEL, "ENGINE_API_KEY_FILE": "/k", "WING_API_KEYS": "sk"}).warnings == (
        "ENGINE_API_KEY_FILE=/k: is not read; did you mean WINGS_ENGINE_API_KEY_FILE?",
    )


@pytest.mark.parametrize(
    "name", ["PORT", "HOST", "LOG_LEVEL", "CONFIG", "DP_SIZE", "MODULEPATH", "VLLM_PORT", "PATH", "HF_HOME", "LANG"]
)
def test_of_other_programs_variables_nothing_is_said(name: str) -> None:
    assert resolve({**MODEL, name: "7"}).warnings == ()


def test_who_set_the_right_one_too_knows_already() -> None:
    assert resolve({**MODEL, "MODLE_PATH": "/m"}).warnings == ()


@pytest.mark.parametrize("service", ["WINGS", "WINGS_INFER_SERVICE", "ENGINE"])
def test_what_a_service_injects_into_later_pods_is_ignored(service: str) -> None:
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "9000",
        f"{service}_SERVICE_PORT_HTTP": "9000",
        f"{service}_SERVICE_PORT_HTTP_METRICS2": "9001",
        f"{service}_PORT": "tcp://10.0.0.1:9000",
        f"{service}_PORT_9000_TCP": "tcp://10.0.0.1:9000",
        f"{service}_PORT_9000_TCP_PROTO": "tcp",
        f"{service}_PORT_9000_TCP_PORT": "9000",
        f"{service}_PORT_9000_TCP_ADDR": "10.0.0.1",
        f"{service}_PORT_53_UDP": "udp://10.0.0.1:53",
    }
    resolved = resolve({**MODEL, **links})
    assert resolved.config == load()
    assert set(resolved.sources.values()) == {"default", "env MODEL_PATH"}


@pytest.mark.parametrize("name", ["WINGS_PORTS", "WINGS_SERVICE", "WINGS_PORT_X", "WINGS_PORT_9000"])
def test_what_no_service_injects_is_not_ignored(name: str) -> None:
    assert problems({name: "1"})[0].startswith(f"{name}=1: no such variable")


def test_other_programs_variables_are_not_ours() -> None:
    assert (
        load({"PATH": "/bin", "VLLM_USE_V1": "1", "wings_x": "1", "MODEL_PATHS": "1", "KUBERNETES_PORT": "x"}) == load()
    )


def test_no_message_shows_a_secret(file: Path) -> None:
    canary = "sk-canary-42"
    content = f"engine: {{env: {{HF_TOKEN: {canary}, BAD NAME: x}}, extra_args: [--api-key, {canary}, ~]}}"
    environ = in_file(file, content) | {"WINGS_API_KEYS": canary, "ENGINE_EXTRA_ARGS": f"--api-key '{canary}"}
    assert canary not in "\n".join(problems(environ))
    del environ["ENGINE_EXTRA_ARGS"]
    assert canary not in "\n".join(problems(environ))


def test_the_table_of_settings_is_whole() -> None:
    assert [setting.field for setting in SETTINGS] == [field.name for field in dataclasses.fields(Config)]
    variables = [setting.env for setting in SETTINGS if setting.env]
    assert len(set(variables)) == len(variables)
    assert len({setting.yaml for setting in SETTINGS}) == len(SETTINGS)
    assert all(setting.yaml.count(".") == 1 and setting.meaning for setting in SETTINGS)
    assert [setting.name for setting in SETTINGS if setting.env is None] == ["engine.env"]
    reference = {"ENGINE_TYPE", "ENGINE_PORT", "WINGS_PORT", "MODEL_NAME", "MODEL_PATH", "TP_SIZE", "MAX_MODEL_LEN"}
    assert reference <= set(variables)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.env and not s.required], ids=lambda s: s.field)
def test_every_default_is_a_value_its_own_variable_could_set(setting: object) -> None:
    from wings_proxy.config.settings import Setting

    assert isinstance(setting, Setting)
    text = setting.kind.to_text(setting.default)
    assert text == "" or setting.kind.from_text(text) == setting.default


NAMES = st.sampled_from(
    [s.env for s in SETTINGS if s.env] + ["WINGS_CONFIG", "WINGS_X", "WINGS_PORT_1_TCP", "WINGS_SERVICE_HOST", "HOME"]
) | st.text(max_size=8).map(lambda text: f"WINGS_{text}")
VALUES = (
    st.sampled_from(["", "1", "8000", "9000", "true", "off", "vllm", "0.5", "64MiB", "tcp://10.0.0.1:9000", "/absent"])
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=20)
    | st.text(st.sampled_from("\0\r\n'\"\\ -=a\udcff\u2028\x85"), max_size=8)
)


@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_any_environment_gives_a_configuration_or_problems_of_one_line_that_name_a_setting(
    environ: dict[str, str],
) -> None:
    try:
        config = load_config(environ)
    except ConfigError as error:
        said = error.problems
    else:
        assert config.model_path
        assert config.port != config.engine_port
        return
    names = [s.name for s in SETTINGS] + ["WINGS_"]
    assert said
    for problem in said:
        assert len(problem.splitlines()) == 1, problem
        assert any(problem.startswith(name) for name in names), problem
        problem.encode("utf-8")


KEYS = st.sampled_from([s.yaml for s in SETTINGS] + ["engine.x"])
NODES = st.recursive(
    st.sampled_from(["~", "1", "'x y'", '"\\n"', '"\\ud800"', "no", "0x1", "1.5", "'--a b'", "A", "8000"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda nodes: f"[{', '.join(nodes)}]")
        | st.dictionaries(st.sampled_from(["A", "B", "HF_TOKEN", "1"]), inner, max_size=2).map(
            lambda nodes: "{" + ", ".join(f"{key}: {node}" for key, node in nodes.items()) + "}"
        )
    ),
    max_leaves=4,
)


@given(st.dictionaries(KEYS, NODES, max_size=6))
@settings(max_examples=examples(50))
def test_so_does_any_file(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    groups: dict[str, list[str]] = {}
    for key, node in values.items():
        group, name = key.split(".")
        groups.setdefault(group, []).append(f"{name}: {node}")
    content = "\n".join(f"{group}: {{{', '.join(nodes)}}}" for group, nodes in groups.items())
    try:
        load(in_file(tmp_path_factory.getbasetemp() / "any-load.yaml", content))
    except ConfigError as error:
        said = error.problems
    else:
        return
    assert said
    assert [len(problem.splitlines()) for problem in said] == [1] * len(said), said


def test_every_setting_can_be_shown_with_its_source_and_no_secret() -> None:
    resolved = resolve({**MODEL, "WINGS_PORT": "9001", "ENGINE_EXTRA_ARGS": "--api-key sesame"})
    shown = {name: (value, source) for name, value, source in resolved.lines()}
    assert list(shown) == [setting.name for setting in SETTINGS]
    assert shown["WINGS_PORT"] == ("9001", "env WINGS_PORT")
    assert shown["ENGINE_PORT"] == ("8000", "default")
    assert shown["ENGINE_EXTRA_ARGS"] == ("--api-key HIDDEN", "env ENGINE_EXTRA_ARGS")


@pytest.mark.parametrize("word", ["--hos", "--po=1"])
def test_the_start_of_a_flag_that_is_ours_alone_is_refused(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(ENGINE_EXTRA_ARGS=f"{word} 0.0.0.0")
    (problem,) = caught.value.problems
    assert problem.startswith(f"ENGINE_EXTRA_ARGS: {word.partition('=')[0]}: ")


@pytest.mark.parametrize("words", ["--host 0.0.0.0", "--hostile yes", "-p 1", "--", "--seed 1"])
def test_other_flags_are_the_users_business(words: str) -> None:
    assert load(ENGINE_EXTRA_ARGS=words).engine_extra_args == tuple(words.split())
