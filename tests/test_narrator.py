"""What is said at the terminal."""

from __future__ import annotations

import shlex

import pytest

from wings_proxy.config import Config
from wings_proxy.narrator import Narrator, base_url, exit_words, ready_lines, tail


def body(state: str, reason: str = "r", **more: object) -> dict[str, object]:
    return {"state": state, "reason": reason, "detail": "d", "progress": None, **more}


def loading(phase: str, ratio: float | None) -> dict[str, object]:
    return body("loading", progress={"phase": phase, "ratio": ratio})


def told(*bodies: dict[str, object]) -> list[str]:
    narrator = Narrator()
    return [line for one in bodies for line in narrator.tell(one)]


def test_a_start_is_told_once_a_step() -> None:
    assert told(
        body("waiting", "not_published"),
        body("starting"),
        body("starting"),
        loading("weights", None),
        loading("weights", 0.31),
        loading("weights", 0.39),
        loading("weights", 0.4),
        loading("warm_up", None),
        body("ready"),
        body("ready"),
    ) == [
        "engine starting",
        "engine loading: weights",
        "engine loading: weights 30 %",
        "engine loading: weights 40 %",
        "engine loading: warm up",
        "engine ready",
    ]


def test_trouble_comes_with_its_reason() -> None:
    assert told(body("waiting", "volume_full"), body("failed", "cuda_oom"), body("unhealthy", "refused")) == [
        "engine waiting: volume_full (d)",
        "engine failed: cuda_oom (d)",
        "engine unhealthy: refused (d)",
    ]


def test_a_reason_from_the_engine_cannot_move_the_cursor() -> None:
    assert told(body("failed", "x\x1b[2J")) == ["engine failed: x\\x1b[2J (d)"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("fe80::1", "http://[fe80::1]:9000"),
        ("box.lan", "http://box.lan:9000"),
    ],
)
def test_where_this_machine_reaches_the_sidecar(host: str, url: str) -> None:
    assert base_url(Config(model_path="m", host=host)) == url


def test_the_curl_line_is_one_a_shell_understands() -> None:
    address, curl, stop = ready_lines(Config(model_path="m"), "it's")

    assert address.startswith("ready: http://127.0.0.1:9000 ")
    assert shlex.split(curl.removeprefix("try:")) == [
        "curl",
        "-N",
        "http://127.0.0.1:9000/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        (
            '{"model": "it\'s", "messages": [{"role": "user", "content": "Tell me a joke."}], '
            '"max_tokens": 200, "stream": true}'
        ),
    ]
    assert stop == "stop:  Ctrl-C"


def test_the_curl_line_reads_the_key_and_does_not_show_it() -> None:
    _, curl, _ = ready_lines(Config(model_path="m", api_keys_file="/run/my keys"), "m")

    assert """-H "Authorization: Bearer $(grep -m1 '^[^#]' '/run/my keys')\"""" in curl


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0"),
        (1, "ended with code 1"),
        (137, "ended with code 137 (SIGKILL)"),
        (-9, "was ended by SIGKILL"),
        (255, "ended with code 255"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert exit_words(code) == words


def test_the_tail_of_a_log() -> None:
    assert tail(b"old\n" * 100 + b"0%\r50%\r100%\n\x1b[31mred\n\xff\r\nlast") == [
        *["  | old"] * 8,
        "  | 100%",
        "  | \\x1b[31mred",
        "  | \N{REPLACEMENT CHARACTER}",
        "  | last",
    ]
    assert tail(b"") == []
