"""What is said at the terminal."""

from __future__ import annotations

import shlex

import pytest

from wings_proxy.config.settings import Config
from wings_proxy.engines.failure_reasons import ADVICE
from wings_proxy.local.narrator import Narrator, base_url, exit_words, live_line, ready_lines, tail


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


def test_a_failure_comes_with_what_to_do_about_it() -> None:
    failure = {"reason": "cuda_oom", "hint": "Lower MAX_NUM_SEQS."}
    assert told(body("failed", "cuda_oom", last_failure=failure)) == [
        "engine failed: cuda_oom (d). Lower MAX_NUM_SEQS."
    ]
    # It is still told of while the next start goes on, which is no news.
    assert told(body("unhealthy", "refused", last_failure=failure)) == ["engine unhealthy: refused (d)"]
    assert told(body("failed", "cuda_oom", last_failure=None)) == ["engine failed: cuda_oom (d)"]


def test_the_longest_failure_is_told_to_its_end() -> None:
    for advice in ADVICE.values():
        said = body("failed", "shared_memory_too_small", last_failure={"hint": advice.hint})
        (line,) = told({**said, "detail": "d" * 250})
        assert line.endswith(advice.hint)


def test_where_the_steps_are_redrawn_they_are_not_told() -> None:
    narrator = Narrator()
    bodies = [body("starting"), loading("weights", 0.5), body("ready"), body("failed"), loading("weights", 0.5)]
    assert [line for one in bodies for line in narrator.tell(one, steps=False)] == [
        "engine ready",
        "engine failed: r (d)",
    ]


URL = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (body("waiting", "volume_full", since_seconds=3.2), "waiting  volume full  3 s"),
        (body("loading", since_seconds=0.0), "loading  0 s"),
        (
            {**loading("warm_up", None), "since_seconds": 12.0, "eta_seconds": 8.4},
            "loading  warm up  12 s  about 8 s to go",
        ),
        ({**loading("weights", 0.5), "since_seconds": 2.0}, "loading  weights  [##########----------] 50%  2 s"),
        (body("ready", "", since_seconds=90.0), f"ready  {URL}  90 s"),
        (body("failed", "x\x1b[2J"), "failed  x\\x1b[2J  0 s"),
    ],
)
def test_the_line_that_is_redrawn(said: dict[str, object], line: str) -> None:
    assert live_line(said, URL, colour=False, width=79) == line


def test_it_never_takes_a_second_line_and_colour_takes_no_room() -> None:
    said = body("ready", "", since_seconds=1.0)
    assert live_line(said, URL, colour=False, width=12) == "ready  http:"
    assert live_line(said, URL, colour=True, width=12) == "\x1b[32mready\x1b[0m  http:"
    assert live_line(body("failed"), URL, colour=True, width=3).startswith("\x1b[31mfai\x1b[0m")
    assert live_line(body("loading"), URL, colour=True, width=79).startswith("\x1b[34mloading\x1b[0m")


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
