"""What each kind of setting accepts, what it refuses, and what it says about it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.config.kinds import (
    Boolean,
    ByteCount,
    Choice,
    EnvironmentBlock,
    Host,
    Integer,
    Kind,
    OptionalSeconds,
    Origins,
    Seconds,
    Text,
    Words,
    looks_secret,
    one_line,
    shown,
    without_passwords,
)

PORT = Integer(1, 65_535)
MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("plain", "plain"),
        ("größe 中文", "größe 中文"),
        ("a\nb\r\0\x1b[31m", "a\\nb\\r\\x00\\x1b[31m"),
        ("\x85\u2028\u2029", "\\x85\\u2028\\u2029"),  # line ends of Unicode, to str.splitlines and to some viewers
        ("a\u202etxt", "a\\u202etxt"),  # right-to-left override: the line would read as another
        ("\udc80", "\\udc80"),  # a byte of the environment that is not UTF-8
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80 + "… (81 characters)"),
        (["a", 1], "['a', 1]"),
        (None, "None"),
    ],
)
def test_a_value_in_a_message_is_one_printable_line(value: object, line: str) -> None:
    assert shown(value) == line


@given(st.text(st.characters(exclude_categories=[])))
def test_no_value_breaks_a_message_into_lines_or_stops_it_from_being_printed(value: str) -> None:
    line = shown(value)
    assert len(line.splitlines()) <= 1
    line.encode("utf-8")  # as printing does


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a\0b", "must not contain NUL"),
        ("a\rb", "must not contain CR"),
        ("a\n", "must not contain LF"),
        ("/models/\udcff", "must be valid UTF-8"),
    ],
)
def test_what_cannot_stand_on_one_line_of_a_script_or_header_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        one_line(text)


@pytest.mark.parametrize("text", ["", "a b", "größe 中文 🦙", "-x", "$(reboot)", "'\"`", "\t"])
def test_everything_else_passes_as_it_is(text: str) -> None:
    assert one_line(text) == text
    assert Text().from_text(text) == text
    assert Text().from_yaml(text) == text


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("65535", 65_535), ("007", 7)])
def test_a_whole_number(text: str, number: int) -> None:
    assert PORT.from_text(text) == number
    assert PORT.from_yaml(text) == number


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "-1", "65536", "1 ", " 1", "+1", "1.0", "1e3", "0x10", "abc", "１", "1_0", "9" * 19, "1\n", "²"],
)
def test_not_a_whole_number_within_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        PORT.from_text(text)
    assert PORT.allowed == "a whole number from 1 to 65535"


def test_a_negative_number_where_bounds_allow_it() -> None:
    assert Integer(-2, 2).from_text("-2") == -2


@pytest.mark.parametrize(("text", "seconds"), [("0.5", 0.5), ("600", 600.0), ("1.250", 1.25)])
def test_a_duration(text: str, seconds: float) -> None:
    assert Seconds(0.5, 600).from_text(text) == seconds


@pytest.mark.parametrize("text", ["0.4", "600.1", "-1", "1e2", "inf", "nan", "5s", ".5", "1.", "", "1,5", "off"])
def test_not_a_duration_within_bounds(text: str) -> None:
    kind = Seconds(0.5, 600)
    with pytest.raises(ValueError, match=r"^$"):
        kind.from_text(text)
    assert kind.allowed == "a number of seconds from 0.5 to 600"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.0, "5"), (0.25, "0.25"), (86_399.125, "86399.125"), (0.0, "0"), (100.0, "100")]
)
def test_a_duration_is_shown_without_needless_digits(seconds: float, text: str) -> None:
    assert Seconds(0, 86_400).to_text(seconds) == text


def test_a_duration_that_can_be_switched_off() -> None:
    kind = OptionalSeconds(1, 60)
    assert kind.from_text("off") is None
    assert kind.from_yaml("off") is None
    assert kind.from_text("2") == 2.0
    assert kind.to_text(None) == "off"
    assert kind.to_text(2.0) == "2"
    assert kind.allowed == "a number of seconds from 1 to 60, or off"
    with pytest.raises(ValueError, match=r"^$"):
        kind.from_text("false")


@pytest.mark.parametrize(
    ("text", "count"), [("65536", 65_536), ("64KiB", 65_536), ("1MiB", MIB), ("1GiB", 1024 * MIB), ("1", 1)]
)
def test_a_number_of_bytes(text: str, count: int) -> None:
    assert ByteCount(1, 1024 * MIB).from_text(text) == count


@pytest.mark.parametrize("text", ["0", "2GiB", "1MB", "1M", "1 MiB", "1.5MiB", "-1", "", "MiB", "1mib"])
def test_not_a_number_of_bytes_within_bounds(text: str) -> None:
    kind = ByteCount(1, 1024 * MIB)
    with pytest.raises(ValueError, match=r"^$"):
        kind.from_text(text)
    assert kind.allowed == "a number of bytes from 1 to 1GiB, such as 65536 or 64MiB"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1, "1"), (1023, "1023"), (1536, "1536"), (2048, "2KiB"), (64 * MIB, "64MiB")]
)
def test_a_number_of_bytes_is_shown_in_its_largest_unit(count: int, text: str) -> None:
    assert ByteCount(0, 1024 * MIB).to_text(count) == text


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "on", "On"])
def test_true(text: str) -> None:
    assert Boolean().from_text(text) is True


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off"])
def test_false(text: str) -> None:
    assert Boolean().from_text(text) is False


@pytest.mark.parametrize("text", ["", "2", "ja", "true ", "t", "None"])
def test_neither_true_nor_false(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        Boolean().from_text(text)


def test_a_truth_is_shown_in_small_letters() -> None:
    assert Boolean().to_text(True) == "true"
    assert Boolean().to_text(False) == "false"


def test_one_of_a_few_words_exactly() -> None:
    kind = Choice("vllm", "sglang")
    assert kind.from_text("sglang") == "sglang"
    assert kind.allowed == "one of vllm, sglang"
    for text in ("", "VLLM", "vllm ", "vllm,sglang", "v"):
        with pytest.raises(ValueError, match=r"^$"):
            kind.from_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("--a --b=1", ("--a", "--b=1")),
        ("--chat-template '/tmp/a b.jinja'", ("--chat-template", "/tmp/a b.jinja")),
        ('--json "{\\"a\\": 1}"', ("--json", '{"a": 1}')),
        ("--x ''", ("--x", "")),
        ("# $(reboot) ;", ("#", "$(reboot)", ";")),
    ],
)
def test_arguments_are_split_as_a_shell_does_and_nothing_in_them_runs(text: str, words: tuple[str, ...]) -> None:
    assert Words().from_text(text) == words
    assert Words().from_yaml(text) == words


def test_a_list_of_arguments_is_taken_word_by_word() -> None:
    assert Words().from_yaml(["--a b", "'c'", "-"]) == ("--a b", "'c'", "-")
    assert Words().to_text(("--a b", "'c'")) == """'--a b' ''"'"'c'"'"''"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("--a 'b", "cannot be split into arguments: no closing quotation"),
        ("--a \\", "cannot be split into arguments: no escaped character"),
        ("--a\n--b", "must not contain LF"),
    ],
)
def test_arguments_that_cannot_be_split(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        Words().from_text(text)


@pytest.mark.parametrize("value", [{"--a": "b"}, ["--a", None], ["--a", ["b"]], 5, None])
def test_what_is_no_list_of_arguments(value: object) -> None:
    with pytest.raises(ValueError, match=r"^must be a list of texts, one argument each$"):
        Words().from_yaml(value)


def test_a_line_end_in_a_list_of_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^must not contain LF$"):
        Words().from_yaml(["--a", "b\n"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--api-key", "sk-1", "--port", "1"), "--api-key HIDDEN --port 1"),
        (("--api-key=sk-1", "-v"), "--api-key=HIDDEN -v"),
        (("--tokenizer", "/t", "--max-num-batched-tokens", "5"), "--tokenizer /t --max-num-batched-tokens 5"),
        (("--api-key-file", "/run/key"), "--api-key-file /run/key"),
        (("--ssl-keyfile", "/run/key"), "--ssl-keyfile /run/key"),
        ((), ""),
    ],
)
def test_a_secret_among_the_arguments_is_not_shown(words: tuple[str, ...], text: str) -> None:
    assert Words().to_text(words) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://user:pass@host:4317/x?y=1", "https://HIDDEN@host:4317/x?y=1"),
        ("--otlp-traces-endpoint=http://token@collector s3://a:b@c/d", None),
        ("https://host/@user", "https://host/@user"),
        ("name@example.com", "name@example.com"),
        ("/models/x@main", "/models/x@main"),
    ],
)
def test_a_password_in_an_address_is_not_shown(text: str, told: str | None) -> None:
    assert without_passwords(text) == (told or "--otlp-traces-endpoint=http://HIDDEN@collector s3://HIDDEN@c/d")


def test_a_secret_among_wrong_arguments_is_not_shown_either() -> None:
    assert Words().disclosed("--api-key 'sk-1") == ""
    assert Words().disclosed(["--api-key", None]) == ""
    assert Words().disclosed("--foo 'x") == "=--foo 'x"


def test_variables_for_the_engine_keep_their_order() -> None:
    pairs = EnvironmentBlock().from_yaml({"NCCL_DEBUG": "INFO", "_x1": "", "A": "a b='c'"})
    assert pairs == (("NCCL_DEBUG", "INFO"), ("_x1", ""), ("A", "a b='c'"))
    assert EnvironmentBlock().to_text(pairs[:1]) == "NCCL_DEBUG=INFO"
    assert EnvironmentBlock().to_text(()) == ""


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"1A": "x"}, "1A is not a variable name"),
        ({"A-B": "x"}, "A-B is not a variable name"),
        ({"A\n": "x"}, r"A\\n is not a variable name"),
        ({"": "x"}, " is not a variable name"),
        ({7: "x"}, "7 is not a variable name"),
        ({"A": None}, "the value of A must be a text"),
        ({"A": ["x"]}, "the value of A must be a text"),
        ({"A": "x\ny"}, "the value of A must not contain LF"),
        ({"A": "x\0"}, "the value of A must not contain NUL"),
    ],
)
def test_variables_the_engine_cannot_be_given(value: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        EnvironmentBlock().from_yaml(value)


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "hf_token", "OPENAI_API_KEY", "OPENAI_APIKEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        *("DB_PASSWORD", "PASSWD", "MY_CREDENTIALS", "SECRET", "VLLM_API_KEYS"),
    ],
)
def test_a_secret_is_sent_to_the_engine_containers_own_env(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} looks like a secret, .* container's own env, from a Secret$"):
        EnvironmentBlock().from_yaml({name: "hunter2"})


@pytest.mark.parametrize(
    "name",
    [
        *("TOKENIZERS_PARALLELISM", "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "HF_TOKEN_PATH", "VLLM_API_KEY_FILE"),
        *("KEYCLOAK_URL", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_name_that_only_resembles_a_secrets_is_fine(name: str) -> None:
    assert not looks_secret(name)
    assert EnvironmentBlock().from_yaml({name: "1"}) == ((name, "1"),)


def test_a_block_of_variables_is_no_text_and_is_never_shown() -> None:
    for value in ("HF_TOKEN=hunter2", ["HF_TOKEN=hunter2"]):
        with pytest.raises(ValueError, match=r"^$"):
            EnvironmentBlock().from_yaml(value)
        assert EnvironmentBlock().disclosed(value) == ""
    with pytest.raises(ValueError, match=r"^$"):
        EnvironmentBlock().from_text("A=1")
    assert EnvironmentBlock().allowed == "a mapping of variable names to texts"


@pytest.mark.parametrize("kind", [Text(), PORT, Seconds(0, 1), OptionalSeconds(0, 1), ByteCount(0, 1), Boolean()])
@pytest.mark.parametrize("value", [None, [], {}, 1, True, 1.5])
def test_a_scalar_setting_takes_only_a_text_from_the_file(kind: Kind[object], value: object) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        kind.from_yaml(value)


def test_a_kind_says_how_it_is_read() -> None:
    with pytest.raises(NotImplementedError):
        Kind[str]().from_text("x")


def test_nothing_is_shown_as_nothing() -> None:
    assert Text().to_text(None) == ""
    assert Text().to_text("x") == "x"


AWKWARD = "aZ0 \t'\"\\$`#;*~é中🦙\x1b"
KINDS_AND_VALUES = [
    (PORT, st.integers(1, 65_535)),
    (Seconds(0, 86_400), st.decimals(0, 86_400, places=9).map(float)),
    (OptionalSeconds(0, 86_400), st.none() | st.decimals(0, 86_400, places=3).map(float)),
    (ByteCount(0, 2**40), st.integers(0, 2**40)),
    (Boolean(), st.booleans()),
    (Text(), st.text(AWKWARD + "-=")),
    (Words(), st.lists(st.text(AWKWARD)).map(tuple)),
]


@given(st.sampled_from(KINDS_AND_VALUES).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1])))
def test_what_is_shown_of_a_value_is_read_as_the_same_value(pair: tuple[Kind[object], object]) -> None:
    kind, value = pair
    assert kind.from_text(kind.to_text(value)) == value


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("*", ("*",)),
        ("https://[::1]:8443", ("https://[::1]:8443",)),
        ("", ()),
    ],
)
def test_origins_as_browsers_write_them(text: str, origins: tuple[str, ...]) -> None:
    assert Origins().from_text(text) == origins
    assert Origins().from_yaml(text) == origins
    assert Origins().from_yaml(list(origins)) == origins
    assert Origins().to_text(origins) == text


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1", "fe80::1%eth0", "localhost", "box.lan"])
def test_what_can_be_listened_on(host: str) -> None:
    assert Host().from_text(host) == host


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://127.0.0.1", "is a URL: write the address alone, such as 127.0.0.1"),
        ("127.0.0.1/8", "is a URL: write the address alone, such as 127.0.0.1"),
        ("127.0.0.1:9000", "write the address alone: the port is WINGS_PORT"),
        (":9000", "write the address alone: the port is WINGS_PORT"),
        ("[::1]", "an IPv6 address stands here without brackets, such as ::1"),
        ("[::1]:9000", "an IPv6 address stands here without brackets, such as ::1"),
        ("127.0.0.1, ::1", "must be an IPv4 or IPv6 address or a host name, and nothing else"),
        ("a\nb", "must not contain LF"),
    ],
)
def test_what_is_more_than_a_host_is_refused_by_what_it_is(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        Host().from_text(text)


@pytest.mark.parametrize(
    "word", ["a.example", "https://a.example/", "https://A.example", "null", "https://*.a.example"]
)
def test_what_would_never_match_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        Origins().from_text(word)


@pytest.mark.parametrize("value", [5, ["https://a.example", 5], {"a": "b"}])
def test_what_is_no_list_of_origins(value: object) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        Origins().from_yaml(value)
