"""The parts of README.md that are made from the code; `python -m tests.readme` writes them anew."""

from __future__ import annotations

from pathlib import Path

from wings_proxy.config import SETTINGS
from wings_proxy.lifecycle import TABLE, State
from wings_proxy.setting_kinds import Text

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """Every setting: variable, YAML key, default, meaning."""
    rows = ["| variable | YAML key | default | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        name = f"`{setting.env}`" if setting.env else "–"
        default = "required" if setting.required else f"`{setting.kind.to_text(setting.default)}`"
        # Of a plain text there is nothing to say.
        meaning = setting.meaning if type(setting.kind) is Text else f"{setting.meaning} ({setting.kind.allowed})"
        rows.append(f"| {name} | `{setting.yaml}` | {'–' if default == '``' else default} | {meaning} |")
    return "\n".join(rows)


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


def with_generated_parts(text: str) -> str:
    """Return README.md's text with each generated part as the code has it now."""
    for name, part in (("diagram", diagram()), ("settings", settings_table())):
        before, _, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, f"README.md has no place for {name}"
        text = f"{before}<!-- generated: {name} -->\n\n{part}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_generated_parts(README.read_text("utf-8")), "utf-8")
