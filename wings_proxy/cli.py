"""The command line: `serve`, `render`, `check`, `up`.

Results go to standard output, everything said to a person to standard error; exit codes: `exit_codes`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wings_proxy.arguments import CHECK, RENDER, UP, ArgumentsError, PageAsked, parse_arguments
from wings_proxy.config.drift import ConfigFile
from wings_proxy.config.kinds import shown
from wings_proxy.config.load import ConfigError, Resolved, config_path, resolve
from wings_proxy.config.settings import Config
from wings_proxy.engines import ENGINES
from wings_proxy.exit_codes import ExitCode
from wings_proxy.handover.launch import render
from wings_proxy.handover.launch_spec import launch_spec
from wings_proxy.proxy.key_files import read_key_files


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; return the exit code."""
    try:
        return _run(parse_arguments(arguments), environ)
    except PageAsked as page:
        return _output(_encoded(str(page)))
    except ArgumentsError as error:
        _say([str(error)])
    except ConfigError as error:
        _say(error.problems)
    return ExitCode.NOT_STARTED


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if options.command == RENDER:
        return _render(_told(resolve(environ)).config, argv=options.argv, out=options.out)
    if options.command == CHECK:
        return _check(_told(resolve(environ)))
    if options.command == UP:
        from wings_proxy.local.up import up

        return asyncio.run(up(environ, ask=options.ask, once=options.once))
    from wings_proxy.serve import run_serve
    from wings_proxy.server.allocator import keep_freed_memory

    path = config_path(environ)
    # Before it is loaded: a change in between is then reported, rather than never seen.
    file = None if path is None else ConfigFile.read(path)
    keep_freed_memory()
    return run_serve(resolve(environ), file)


def _render(config: Config, *, argv: bool, out: Path | None) -> int:
    engine = ENGINES[config.engine_type]
    data = (
        f"{json.dumps(engine.argv(config), ensure_ascii=False)}\n".encode()
        if argv
        else render(launch_spec(config, engine)).text
    )
    if out is None:
        return _output(data)
    try:
        out.write_bytes(data)
        out.chmod(0o755)
    except OSError as error:
        _say([f"--out {shown(str(out))}: cannot be written: {error.strerror}"])
        return ExitCode.FAILED
    return ExitCode.DONE


def _check(resolved: Resolved) -> int:
    read_key_files(resolved.config)
    # A value may hold what a terminal would act on.
    return _output(
        _encoded(
            "".join(
                f"{name:<32} {shown(value, limit=100_000):<40} {source}\n" for name, value, source in resolved.lines()
            )
        )
    )


def _told(resolved: Resolved) -> Resolved:
    _say(resolved.warnings)
    return resolved


def _say(lines: Sequence[str]) -> None:
    """Tell a person; if nobody is there, the exit code still tells."""
    try:
        for line in lines:
            print(line, file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        # What is still buffered would be tried again, and complained of, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _encoded(text: str) -> bytes:
    return text.encode(sys.stdout.encoding, "backslashreplace")


def _output(data: bytes) -> int:
    """Write a command's result; return the exit code."""
    try:
        # Not through sys.stdout, which keeps what it could not write, tries again and complains at exit.
        with open(sys.stdout.fileno(), "wb", closefd=False) as output:
            output.write(data)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return ExitCode.BROKEN_PIPE
        _say([f"standard output: cannot be written: {error.strerror}"])
        return ExitCode.FAILED
    return ExitCode.DONE
