"""The parts of the pages that are made from the code; `python -m tests.readme` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests import chinese
from tests.engine_life import start_failures, timeline
from wings_proxy.config.kinds import Text
from wings_proxy.config.settings import SETTINGS
from wings_proxy.engines.failure_reasons import ADVICE
from wings_proxy.exit_codes import ExitCode
from wings_proxy.lifecycle.state import TABLE, State

ROOT: Final = Path(__file__).parent.parent
README: Final = ROOT / "README.md"
CHINESE: Final = ROOT / "README.zh-CN.md"
DEPLOY: Final = ROOT / "deploy" / "README.md"
ENGINE: Final = ROOT / "deploy" / "ENGINE.md"
# Each with the parts it must have.
PAGES: Final[Mapping[Path, tuple[str, ...]]] = MappingProxyType(
    {
        README: ("diagram", "exit-codes", "settings"),
        CHINESE: ("diagram", "exit-codes.zh-CN", "settings.zh-CN"),
        DEPLOY: ("failures",),
        ENGINE: ("timeline", "start-failures"),
    }
)


def sample_lines() -> list[str]:
    """Return how the last lines of `make demo` begin, as the README shows them: cut where they are cut there."""
    block = README.read_text("utf-8").partition("The last lines are:\n\n```text\n")[2].partition("```")[0]
    return [line.removesuffix(" …") for line in block.splitlines()]


def settings_table() -> str:
    """Every setting: variable, YAML key, default, meaning."""
    return _settings(("variable", "YAML key", "default", "meaning"), "required", "{meaning} ({allowed})", str, str)


def chinese_settings_table() -> str:
    """The same in Chinese."""
    heads = ("变量", "YAML 键", "默认值", "含义")
    return _settings(heads, "必填", "{meaning}（{allowed}）", chinese.MEANINGS.__getitem__, chinese.allowed)


def _settings(
    heads: tuple[str, ...], required: str, form: str, told: Callable[[str], str], allowed: Callable[[str], str]
) -> str:
    rows = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    for setting in SETTINGS:
        name = f"`{setting.env}`" if setting.env else "–"
        default = required if setting.required else f"`{setting.kind.to_text(setting.default)}`"
        meaning = told(setting.meaning)
        # Of a plain text there is nothing to say.
        if not isinstance(setting.kind, Text):
            meaning = form.format(meaning=meaning, allowed=allowed(setting.kind.allowed))
        rows.append(f"| {name} | `{setting.yaml}` | {'–' if default == '``' else default} | {meaning} |")
    return "\n".join(rows)


def exit_codes() -> str:
    """Every code a command ends with by itself."""
    return _exit_codes("| exit code | meaning |", str)


def chinese_exit_codes() -> str:
    """The same in Chinese."""
    return _exit_codes("| 退出码 | 含义 |", chinese.EXIT_CODES.__getitem__)


def _exit_codes(heads: str, told: Callable[[str], str]) -> str:
    return "\n".join([heads, "|---|---|", *(f"| {code.value} | {told(code.meaning)} |" for code in ExitCode)])


def diagram() -> str:
    """The state machine as a Mermaid diagram, drawn from the table; events that end in one state share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(State))}"]
    for source, cells in TABLE.items():
        arrows: dict[State, list[str]] = {}
        for event, target in cells.items():
            if isinstance(target, State) and target is not State.DRAINING:
                arrows.setdefault(target, []).append(event)
        lines += [f"    {source} --> {target}: {', '.join(events)}" for target, events in arrows.items()]
    drains = sorted(source for source, cells in TABLE.items() if State.DRAINING in cells.values())
    lines += [f"    note right of {State.DRAINING}: from {', '.join(drains)} on drain", "```"]
    return "\n".join(lines)


def failures_table() -> str:
    """Every reason an engine's run can fail of, and the hint `/health` gives with it."""
    rows = ["| state | reason | again? | what to do |", "|---|---|---|---|"]
    for reason, advice in ADVICE.items():
        rows.append(f"| failed | `{reason}` | {'yes' if advice.retryable else 'no'} | {advice.hint} |")
    return "\n".join(rows)


PARTS: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "diagram": diagram,
        "exit-codes": exit_codes,
        "exit-codes.zh-CN": chinese_exit_codes,
        "settings": settings_table,
        "settings.zh-CN": chinese_settings_table,
        "failures": failures_table,
        "timeline": timeline,
        "start-failures": start_failures,
    }
)


def with_generated_parts(text: str) -> str:
    """Return a page's text with each generated part as the code has it now."""
    for name in re.findall(r"^<!-- generated: (\S+) -->$", text, re.MULTILINE):
        before, _, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, f"no end of {name}"
        text = f"{before}<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_generated_parts(page.read_text("utf-8")), "utf-8")
