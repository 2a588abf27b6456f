"""Whatever the bytes: hypothesis makes up what strangers, the engine and its log may say.

Each room has more of this where its own tests are: configurations (`tests/config`), status files and scripts
(`tests/handover`), the states (`tests/lifecycle`), chunk boundaries (`tests/proxy/test_http1.py`, `test_relay.py`).
`make soak` takes more examples.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.engines import ENGINES
from wings_proxy.engines.failure_reasons import diagnose
from wings_proxy.engines.log_stats import LogStats
from wings_proxy.handover.engine_status import Phase, parse_status
from wings_proxy.lifecycle.engine_log import LineSplitter, LoadProgress, is_echo
from wings_proxy.proxy.headers import (
    CREDENTIALS,
    HOP_BY_HOP,
    NOT_TO_ENGINE,
    answer_head,
    read_fields,
    request_head,
    request_id,
    response_head,
)
from wings_proxy.proxy.http1 import ChunkedDecoder, ProtocolError, encode_chunk

# ---- headers: what the parser lets through, and nothing else

TOKEN = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12)
KNOWN = st.sampled_from(
    [name.decode() for name in (*HOP_BY_HOP, *CREDENTIALS, b"Host", b"Expect", b"X-Request-Id", b"Content-Length")]
)
NAMES = TOKEN | KNOWN | KNOWN.map(str.upper) | KNOWN.map(str.title)
TEXT = st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f") | st.just("\t")
VALUES = st.text(TEXT, max_size=30).map(lambda value: value.strip(" \t")) | st.lists(NAMES, max_size=4).map(", ".join)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


@given(FIELDS, st.booleans())
def test_request_fields_cross_whole_once_and_in_order(fields: list[tuple[str, str]], keys_in_force: bool) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    dropped = NOT_TO_ENGINE | CREDENTIALS if keys_in_force else NOT_TO_ENGINE
    read = read_fields(raw, dropped=dropped)
    head = request_head("POST", "/x", read, host=b"127.0.0.1:1", request_id=request_id(read.read.get(b"x-request-id")))
    start, *lines = head[:-4].split(b"\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert start == b"POST /x HTTP/1.1"
    names = [line.partition(b":")[0].lower() for line in lines]
    assert names.count(b"host") == names.count(b"x-request-id") == 1
    assert names.count(b"transfer-encoding") == read.chunked
    assert not {b"connection", b"upgrade", b"te", b"keep-alive", b"expect"} & set(names)
    if keys_in_force:
        assert not CREDENTIALS & set(names)
    # What goes on is a part of what came, in its order.
    came = iter([b"%b: %b" % field for field in raw])
    ours = (b"host:", b"x-request-id:", b"transfer-encoding:")
    assert all(line in came for line in lines if not line.lower().startswith(ours))
    assert all(len(re.findall(rb"[\r\n]", line)) == 0 for line in lines)


# ---- heads of answers

SOUND = st.sampled_from(
    [
        b"Content-Length: 7",
        b"content-length: 12",
        b"Content-Length: 0",
        b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
        b"Connection: close, x-a",
        b"Connection: content-length",
        b"X-A: b",
        b"Content-Type: text/event-stream",
        b"Content-Encoding: gzip",
        b"X-Request-Id: theirs",
        b"x-long: content-length: 5",
        b"Access-Control-Allow-Origin: *",
    ]
)
LINES = st.lists(SOUND | st.binary(max_size=20), max_size=6)


@given(st.sampled_from([b"200 OK", b"204 No Content", b"304 x", b"500 ", b"100 Continue", b"42", b"200"]), LINES)
def test_an_answers_head_is_sound_or_refused(status: bytes, lines: list[bytes]) -> None:
    block = b"\r\n".join([b"HTTP/1.1 " + status, *lines]) + b"\r\n\r\n"
    if block.index(b"\r\n\r\n") != len(block) - 4:
        return  # two blocks: who splits them sees to it
    outcomes = []
    # Twice: the second time it is remembered.
    for _ in range(2):
        try:
            answer, digits = answer_head(block, head_request=False)
        except ProtocolError:
            outcomes.append(b"")
            continue
        outcomes.append(response_head(answer, digits, request_id=b"ours", chunked=False, connection=None))
    assert outcomes[0] == outcomes[1]
    if not outcomes[0]:
        return
    start, *sent = outcomes[0][:-4].split(b"\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 [1-5]\d\d [^\r\n\0]*", start)
    names = [re.match(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?[^\r\n\0]*$", line) for line in sent]
    assert all(names)
    lower = [found[1].lower() for found in names if found]
    assert lower.count(b"x-request-id") == 1
    assert lower.count(b"content-length") <= 1
    assert not {b"transfer-encoding", b"connection", b"access-control-allow-origin"} & set(lower)
    given_lengths = [line[15:].strip() for line in lines if line.lower().startswith(b"content-length:")]
    assert [line[15:].strip() for line in sent if line.lower().startswith(b"content-length:")] in ([], given_lengths)


# ---- chunk boundaries

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(CHUNKS, st.sampled_from([b"", b";a=b", b" ", b";\x00"]), st.lists(st.integers(0, 400)), st.binary(max_size=4))
def test_a_chunked_body_is_read_the_same_however_it_is_cut(
    chunks: list[bytes], extension: bytes, cuts: list[int], behind: bytes
) -> None:
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks) + b"0\r\n\r\n" + behind
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    pieces = [wire[start:end] for start, end in itertools.pairwise(places)]
    outcomes = []
    for parts in ([wire], pieces, [wire[at : at + 1] for at in range(len(wire))]):
        decoder, body = ChunkedDecoder(), b""
        try:
            for part in parts:
                body += b"".join(decoder.feed(part))
        except ProtocolError:
            outcomes.append((b"refused", False, False))
        else:
            outcomes.append((body, decoder.done, decoder.surplus))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    if extension in (b"", b";a=b"):
        assert outcomes[0] == (b"".join(chunks), True, bool(behind))
    assert b"".join(map(encode_chunk, chunks)).count(b"\r\n") >= 2 * len(chunks)


# ---- log lines

PIECES = st.sampled_from(
    [
        "(EngineCore pid=1) ",
        "INFO 11-22 18:48:13 [loggers.py:257] ",
        "Engine 000: ",
        "Avg prompt throughput: ",
        "GPU KV cache usage: ",
        "99.9%",
        "1e999",
        "nan",
        " tokens/s, ",
        "[2026-11-22 18:48:13 TP0] Decode batch, ",
        "#running-req: ",
        "Loading safetensors checkpoint shards: ",
        "100% Completed | ",
        "9" * 400,
        "/",
        "0",
        "Capturing CUDA graphs",
        "1.00.000.000 I slot print_timing: id 0 | task 1 | ",
        "eval time = 1.0 ms / ",
        "999999999 tokens ",
        "CUDA out of memory",
        "\x1b[0m",
        "\u0661\u0662",
    ]
)
LOG_LINES = st.lists(PIECES | st.text(max_size=12), max_size=8).map("".join)


@pytest.mark.parametrize("name", sorted(ENGINES))
@given(lines=st.lists(LOG_LINES, max_size=5))
def test_no_log_line_breaks_its_reader_or_makes_a_number_that_is_none(name: str, lines: list[str]) -> None:
    engine = ENGINES[name]
    progress, stats = LoadProgress(engine.load_phases), LogStats(engine.log_reader)
    for line in LineSplitter().feed("\n".join([*lines, ""]).encode("utf-8", "surrogatepass")):
        is_echo(line)
        stats.see(line, 0.0)
        seen = progress.see(line)
        if seen is not None and seen.ratio is not None:
            assert 0.0 <= seen.ratio <= 1.0
    sample = stats.sample(0.0)
    if sample is not None:
        for field in ("running", "waiting", "kv_cache_usage", "prefix_cache_hit_ratio", "prompt_tokens_per_second"):
            value = getattr(sample, field)
            assert value is None or (math.isfinite(value) and value >= 0)
    why = diagnose(engine.failure_lines, lines, code=1, was_ready=False)
    assert why.reason


# ---- status files

SECONDS = st.integers(0, 2**53)
STATUS = st.fixed_dictionaries(
    {
        "run": st.uuids().map(str),
        "generation": st.text("0123456789abcdef", min_size=12, max_size=12),
        "phase": st.just("exited"),
        "asked": st.booleans(),
        "code": st.integers(0, 255),
        "started": SECONDS,
        "changed": SECONDS,
    }
) | st.fixed_dictionaries(
    {
        "run": st.uuids().map(str),
        "generation": st.text("0123456789abcdef", min_size=12, max_size=12),
        "phase": st.sampled_from(["running", "stop_requested"]),
        "asked": st.none(),
        "code": st.none(),
        "started": SECONDS,
        "changed": SECONDS,
    }
).map(lambda fields: {**fields, "asked": fields["phase"] == "stop_requested"})
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
NAMES_OF_ALL = ["run", "generation", "phase", "asked", "code", "started", "changed", "more"]
NEARLY = st.sampled_from(
    [("run", "0" * 8 + "-0000" * 3 + "-" + "0" * 12 + end) for end in ("", "\n", "0")]
    + [("generation", "0" * 12 + end) for end in ("", "\n", "0")]
    + [("phase", phase.value) for phase in Phase]
    + [("asked", asked) for asked in (True, False, 1, "true")]
    + [("code", code) for code in (-1, 0, 255, 256, 1.0, True)]
    + [("started", seconds) for seconds in (-1, 2**53 + 1, 1.0, False)]
)
CHANGES = st.lists(NEARLY | NEARLY | st.tuples(st.sampled_from(NAMES_OF_ALL), ODD), max_size=2).map(dict)


@given(STATUS, CHANGES, st.just("") | st.just("\n") | st.sampled_from([" ", "x", "{}", "\0"]))
def test_a_status_file_is_exactly_one_or_none(
    sound: dict[str, object], changes: dict[str, object], behind: str
) -> None:
    """What is read is what was written, to the letter; what was not changed is read."""
    fields = {**sound, **changes}
    status = parse_status((json.dumps(fields) + behind).encode("utf-8", "surrogatepass"))
    if status is not None:
        assert json.dumps(asdict(status), sort_keys=True) == json.dumps(fields, sort_keys=True)
        assert not behind.strip()
        assert (status.phase is Phase.EXITED) == (status.code is not None)
        assert re.fullmatch("[0-9a-f-]{36}", status.run)
        assert re.fullmatch("[0-9a-f]{12}", status.generation)
        assert [type(value) for value in (status.asked, status.started, status.changed)] == [bool, int, int]
    elif behind in ("", "\n", " "):
        assert changes
