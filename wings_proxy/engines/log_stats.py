"""What an engine's log says of its speed and its queue, for an engine that has no metrics. Pure.

A log line is untrusted: a prompt can hold one that looks right. So nothing here is more than a gauge, `/metrics` goes
before it, and a line is read field by field: its head must be the engine's own, a field its own name, its unit, and a
short number. No expression here has two ways to match one text.

Lines as of vLLM 0.8.5 (both engines) to 0.32.0, SGLang 0.5.23, llama.cpp b11549.
"""

from __future__ import annotations

import functools
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from wings_proxy.engines.metrics import EngineSample

# vLLM says something every ten seconds as long as there is something to say, then nothing; SGLang every forty steps.
_FRESH_SECONDS: Final = 30.0
# Data-parallel ranks, slots.
_MOST_RANKS: Final = 1024
_MOST_ENDED: Final = 4096

_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,6})?")


class LogReader(Protocol):
    """Reads one engine's lines, of one run."""

    def see(self, line: str, now: float) -> None:
        """Take a line that was read at monotonic time *now*."""
        ...

    def sample(self, now: float) -> EngineSample | None:
        """Return what the log says as of *now*; None if that is nothing."""
        ...


class LogStats:
    """Follows the log of one run."""

    def __init__(self, new_reader: Callable[[], LogReader]) -> None:
        """Read each run with a reader of its own."""
        self._new_reader = new_reader
        self.forget()

    def forget(self) -> None:
        """Begin anew: another run, or part of the log was lost."""
        self._reader = self._new_reader()

    def see(self, line: str, now: float) -> None:
        """Take a line that was read at monotonic time *now*."""
        self._reader.see(line, now)

    def sample(self, now: float) -> EngineSample | None:
        """Return what the log says as of *now*; None if that is nothing."""
        return self._reader.sample(now)


class Silent:
    """Of an engine whose log says nothing of its speed."""

    def see(self, line: str, now: float) -> None:
        """Take no notice."""

    def sample(self, now: float) -> None:
        """Return None."""


# -- vLLM and SGLang: a line with the numbers of one rank ------------------------------------------------------------


def _vllm(line: str) -> Iterator[tuple[str, str, float]]:
    head = _VLLM_HEAD.match(line)
    if head is None:
        return
    rank = head["rank"] or ""
    for part in line[head.end() :].removesuffix(".").split(", "):
        name, _, text = part.partition(": ")
        # The engine before V1 tells two caches, the one that counts first.
        name = "KV cache usage" if name.endswith(" KV cache usage") and name[:-15].isalnum() else name
        field, unit = _VLLM_FIELDS.get(name, ("", ""))
        if field and text.endswith(unit) and _NUMBER.fullmatch(text, 0, len(text) - len(unit)):
            yield rank, field, float(text[: len(text) - len(unit)]) / (100.0 if unit == "%" else 1.0)


_VLLM_HEAD: Final = re.compile(
    r"(?:\(\w{1,32} pid=\d{1,10}\) )?INFO \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]{1,64}:\d{1,6}\] "
    r"(?:Engine (?P<rank>\d{3,4}): |\d{1,4} Engines Aggregated: )?(?=Avg prompt throughput: )",
    re.ASCII,
)
_VLLM_FIELDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "Avg prompt throughput": ("prompt_tokens_per_second", " tokens/s"),
        "Avg generation throughput": ("generation_tokens_per_second", " tokens/s"),
        "Running": ("running", " reqs"),
        "Waiting": ("waiting", " reqs"),
        "Pending": ("waiting", " reqs"),
        "KV cache usage": ("kv_cache_usage", "%"),
        "Prefix cache hit rate": ("prefix_cache_hit_ratio", "%"),
    }
)


def _sglang(line: str) -> Iterator[tuple[str, str, float]]:
    head = _SGLANG_HEAD.match(line)
    if head is None:
        return
    for part in line[head.end() :].split(", "):
        name, _, text = part.partition(": ")
        field = _SGLANG_FIELDS.get(name, "")
        if field and _NUMBER.fullmatch(text):
            yield head["rank"] or "", field, float(text)


_SGLANG_HEAD: Final = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: DP(?P<rank>\d{1,4}))?(?: [A-Z]{2}\d{1,4}){0,4}\] "
    r"(?:Decode|Prefill) batch(?: \[\d{1,12}\])?, ",
    re.ASCII,
)
_SGLANG_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "#running-req": "running",
        "#queue-req": "waiting",
        "token usage": "kv_cache_usage",
        "full token usage": "kv_cache_usage",
        "gen throughput (token/s)": "generation_tokens_per_second",
        "input throughput (token/s)": "prompt_tokens_per_second",
    }
)

_RATIOS: Final = frozenset({"kv_cache_usage", "prefix_cache_hit_ratio"})


class _Ranks:
    """The newest number of each field of each rank, as long as it is fresh."""

    def __init__(self, fields: Callable[[str], Iterable[tuple[str, str, float]]]) -> None:
        self._fields = fields
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}

    def see(self, line: str, now: float) -> None:
        told = set()
        for rank, field, value in self._fields(line):
            if field in told or (field in _RATIOS and value > 1.0):
                continue
            told.add(field)
            if (rank, field) in self._seen or len(self._seen) < _MOST_RANKS:
                self._seen[rank, field] = (now, value)

    def sample(self, now: float) -> EngineSample | None:
        self._seen = {key: (at, value) for key, (at, value) in self._seen.items() if now - at <= _FRESH_SECONDS}
        values: dict[str, list[float]] = {}
        for (_, field), (_, value) in self._seen.items():
            values.setdefault(field, []).append(value)
        if not values:
            return None
        return EngineSample(
            **{field: math.fsum(found) / (len(found) if field in _RATIOS else 1) for field, found in values.items()}
        )


# -- llama.cpp: lines of what happens to a slot ----------------------------------------------------------------------

_SLOT: Final = re.compile(
    r"\d{1,6}\.\d\d\.\d{3}\.\d{3} I slot {1,8}(?P<what>launch_slot_|release|print_timing): "
    r"id {1,4}(?P<slot>\d{1,4}) \| task \d{1,12} \| {0,16}",
    re.ASCII,
)
_TIMING: Final = re.compile(
    r"(?P<prompt>prompt )?eval time = {1,16}[0-9.]{1,16} ms / {1,8}(?P<tokens>\d{1,9}) tokens ", re.ASCII
)


class _Llamacpp:
    """It tells what begins and what ended, so the running ones are counted and speed is of the requests that ended."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._ended: deque[tuple[float, int, int]] = deque(maxlen=_MOST_ENDED)
        self._anything = False

    def see(self, line: str, now: float) -> None:
        found = _SLOT.match(line)
        if found is None:
            return
        match found["what"]:
            case "launch_slot_" if len(self._busy) < _MOST_RANKS:
                self._busy.add(found["slot"])
            case "release":
                self._busy.discard(found["slot"])
            case "print_timing" if (timing := _TIMING.match(line, found.end())) is not None:
                tokens = int(timing["tokens"])
                self._ended.append((now, tokens, 0) if timing["prompt"] else (now, 0, tokens))
        self._anything = True

    def sample(self, now: float) -> EngineSample | None:
        if not self._anything:
            return None
        while self._ended and now - self._ended[0][0] > _FRESH_SECONDS:
            self._ended.popleft()
        return EngineSample(
            running=float(len(self._busy)),
            prompt_tokens_per_second=sum(prompt for _, prompt, _ in self._ended) / _FRESH_SECONDS,
            generation_tokens_per_second=sum(made for _, _, made in self._ended) / _FRESH_SECONDS,
        )


VLLM_LOG: Final[Callable[[], LogReader]] = functools.partial(_Ranks, _vllm)
SGLANG_LOG: Final[Callable[[], LogReader]] = functools.partial(_Ranks, _sglang)
LLAMACPP_LOG: Final[Callable[[], LogReader]] = _Llamacpp
