"""The command line: `serve`, `render`, `check`, `up`.

Exit codes: 0 done, 1 could not go on, 2 wrong configuration or arguments (nothing was started or written).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from wings_proxy import __version__
from wings_proxy.config import SETTINGS, Config
from wings_proxy.config_drift import ConfigFile
from wings_proxy.config_load import ConfigError, config_path, load_config, resolve
from wings_proxy.engines import ENGINES
from wings_proxy.launch import render
from wings_proxy.launch_spec import launch_spec

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "render":
                return _render(load_config(environ), argv=options.argv, out=options.out)
            case "check":
                return _check(environ)
            case "up":
                from wings_proxy.up import up

                return asyncio.run(up(environ, ask=options.ask, once=options.once))
            case _:
                from wings_proxy.serve import run_serve

                path = config_path(environ)
                # Before it is loaded: a change in between is then reported, rather than never seen.
                file = None if path is None else ConfigFile.read(path)
                return run_serve(load_config(environ), file)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_CONFIG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wings-proxy",
        description="The sidecar that makes an LLM engine a good citizen of Kubernetes.",
        epilog="Settings come from the environment, over the YAML file that WINGS_CONFIG names, over defaults.\n"
        "`wings-proxy check` shows every one with its value and source:\n\n" + _settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wings-proxy {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="run the sidecar (the default)")
    render_command = commands.add_parser("render", help="print the engine's launch script")
    render_command.add_argument("--argv", action="store_true", help="print the engine's command as a JSON list instead")
    render_command.add_argument("--out", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    commands.add_parser("check", help="check the configuration and show every setting with its source")
    up_command = commands.add_parser("up", help="run sidecar and engine on this machine")
    up_command.add_argument(
        "--ask", metavar="TEXT", action="append", default=[], help="when ready, ask TEXT and stream the answer"
    )
    up_command.add_argument("--once", action="store_true", help="stop after the answers instead of staying up")
    return parser


def _settings_help() -> str:
    return "\n".join(f"  {setting.env:<32} {setting.meaning}" for setting in SETTINGS if setting.env)


def _render(config: Config, *, argv: bool, out: Path | None) -> int:
    engine = ENGINES[config.engine_type]
    data = (
        f"{json.dumps(engine.argv(config), ensure_ascii=False)}\n".encode()
        if argv
        else render(launch_spec(config, engine)).text
    )
    try:
        if out is None:
            # Not through sys.stdout: what a full disk refused would be tried again, and complained of, at exit.
            with open(sys.stdout.fileno(), "wb", closefd=False) as output:
                output.write(data)
        else:
            out.write_bytes(data)
            out.chmod(0o755)
    except OSError as error:
        target = "standard output" if out is None else f"--out {out}"
        print(f"{target}: cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _check(environ: Mapping[str, str]) -> int:
    resolved = resolve(environ)
    for setting in SETTINGS:
        value = setting.kind.to_text(getattr(resolved.config, setting.field))
        print(f"{setting.name:<32} {value:<40} {resolved.sources[setting.field]}")
    return 0
