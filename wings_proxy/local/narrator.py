"""What a person at a terminal is told while sidecar and engine come up, run and fail: pure text."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from wings_proxy.config.kinds import shown
from wings_proxy.config.settings import Config

_QUESTION: Final = "Tell me a joke."
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 8192
# A detail and a hint, of at most 250 characters each, and what they stand in.
_LINE: Final = 600


class Narrator:
    """Turns successive bodies of the sidecar's /health into lines, one for each thing that is new."""

    def __init__(self) -> None:
        self._told: tuple[object, ...] = ()

    def tell(self, body: Mapping[str, Any], *, steps: bool = True) -> Iterator[str]:
        """Yield what this body adds to the one before; without `steps` not how far a start has come."""
        state, reason = body.get("state"), body.get("reason")
        progress = body.get("progress") or {}
        phase, ratio = progress.get("phase"), progress.get("ratio")
        news: tuple[object, ...]
        match state:
            case "waiting" if not str(reason).startswith("volume_"):
                return  # the launch script is written within a moment
            case "waiting" | "unhealthy" | "failed":
                hint = (body.get("last_failure") or {}).get("hint") if state == "failed" else None
                advice = f". {hint}" if hint else ""
                news, line = (state, reason), f"engine {state}: {reason} ({body.get('detail')}){advice}"
            case "loading" if phase is not None:
                # A line for each tenth of a phase.
                tenth = None if ratio is None else int(ratio * 10)
                percent = "" if tenth is None else f" {tenth * 10} %"
                news, line = (state, phase, tenth), f"engine loading: {str(phase).replace('_', ' ')}{percent}"
            case _:
                news, line = (state,), f"engine {state}"
        if news != self._told:
            self._told = news
            if not steps and state in ("starting", "loading"):
                return
            yield shown(line, limit=_LINE)


_COLOURS: Final = {"ready": "32", "failed": "31", "unhealthy": "31"}
_BUSY_COLOUR: Final = "34"
# What a narrow terminal has no room for goes in this order: the bar, the time to go, whatever is last.
_BAR: Final = 20
_SHORTEST_BAR: Final = 5
_GAP: Final = "  "


def live_line(body: Mapping[str, Any], url: str, *, colour: bool, width: int) -> str:
    """Return the state on one line of at most `width` columns, for a terminal where it is redrawn."""
    state, progress = str(body.get("state")), body.get("progress") or {}
    ratio = None
    if state == "ready":
        what = url
    elif state == "loading":
        what, ratio = str(progress.get("phase") or "").replace("_", " "), progress.get("ratio")
    else:
        what = str(body.get("reason") or "").replace("_", " ")
    parts = [state, what, f"{body.get('since_seconds') or 0:.0f} s"]
    if ratio is not None:
        parts.insert(2, f"{ratio:.0%}")
    text = _GAP.join(filter(None, parts))
    eta = body.get("eta_seconds")
    to_go = "" if eta is None else f"{_GAP}about {eta:.0f} s to go"
    if len(text + to_go) <= width:
        text += to_go
    if ratio is not None and (bar := min(_BAR, width - len(text) - len("[] "))) >= _SHORTEST_BAR:
        done = round(ratio * bar)
        text = text.replace(f"{_GAP}{ratio:.0%}", f"{_GAP}[{'#' * done}{'-' * (bar - done)}] {ratio:.0%}", 1)
    text = shown(text, limit=500)[:width]
    if not colour:
        return text
    return f"\x1b[{_COLOURS.get(state, _BUSY_COLOUR)}m{text[: len(state)]}\x1b[0m{text[len(state) :]}"


def base_url(config: Config) -> str:
    """Return the sidecar's address as this machine reaches it."""
    match config.host:
        case "" | "0.0.0.0":
            host = "127.0.0.1"
        case "::":
            host = "[::1]"
        case host if ":" in host:
            host = f"[{host}]"
        case host:
            pass
    return f"http://{host}:{config.port}"


def ready_lines(config: Config, model: str) -> Iterator[str]:
    """Yield what to do now that everything is up; the second line can be pasted into a shell."""
    url = base_url(config)
    body = {"model": model, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 200, "stream": True}
    key = ""
    if config.api_keys_file:
        # The key itself is for nobody's terminal scroll-back.
        key = f""" -H "Authorization: Bearer $(grep -m1 '^[^#]' {shlex.quote(config.api_keys_file)})\""""
    yield f"ready: {url} (status page; API docs {url}/docs, metrics {url}/metrics)"
    yield (
        f"try:   curl -N {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
    yield "stop:  Ctrl-C"


def exit_words(code: int) -> str:
    """Return an exit code in words: negative for a signal, as `subprocess` has it; 128 + n as the shell has it."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with code {code}"
    return f"was ended by {name}" if code < 0 else f"ended with code {code} ({name})"


def tail(data: bytes) -> Sequence[str]:
    """Return the last lines of a log, fit for a terminal whatever is in them."""
    # A progress bar rewrites its line with CR: only its last state is of interest.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in data[-_TAIL_BYTES:].decode(errors="replace").split("\n")]
    return [f"  | {shown(line, limit=300)}" for line in lines if line.strip()][-_TAIL_LINES:]
