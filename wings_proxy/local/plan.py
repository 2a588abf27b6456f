"""Decide what `up` runs: engine, model, settings; and find what is in its way before anything starts."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wings_proxy.config.file import ConfigFileError, read_config_file
from wings_proxy.config.kinds import shown
from wings_proxy.config.load import CONFIG_FILE_VARIABLE, YAML_KEYS, load_config, misspelt_variables
from wings_proxy.config.settings import SETTINGS, Config
from wings_proxy.engines import ENGINES
from wings_proxy.listen_errors import cannot_listen
from wings_proxy.local.default_model import DEFAULT_MODEL, cache_directory
from wings_proxy.proxy.key_files import key_file_problems

LLAMA_SERVER: Final = "llama-server"

# What the stub and the launch script call, beyond the shell itself: coreutils and util-linux.
_TOOLS: Final = ("sh", "setsid", "stat", "mkfifo", "mv", "rm", "dd", "tee", "timeout", "date", "env", "sleep", "cat")
# One machine has no endpoints to wait for, so nothing new arrives after a stop was asked for.
# The log is for a person.
_DEFAULTS: Final = {"WINGS_HOST": "127.0.0.1", "WINGS_QUIET_SECONDS": "0", "WINGS_LOG_FORMAT": "plain"}
# A laptop's worth of context: 4 × 2048 tokens.
_LLAMACPP_DEFAULTS: Final = {"MAX_MODEL_LEN": "2048", "MAX_NUM_SEQS": "4"}
# One of them says what a directory of weights is: Hugging Face's, or Mistral's own.
_MODEL_FILES: Final = ("config.json", "params.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: the validated settings, the environment that says the same to the sidecar, and what is to be made.

    `default_model`: `config.model_path` is the default model's place in the cache, and may have to be fetched.
    `llama_shim`: there is no `llama-server` on `PATH`, so ours takes its place.
    """

    config: Config
    environ: Mapping[str, str]
    default_model: bool
    llama_shim: bool
    warnings: tuple[str, ...] = ()


def make_plan(environ: Mapping[str, str]) -> Plan:
    """Return what the environment (and the YAML file it names) asks for. Raises `ConfigError`."""
    given = _given(environ)
    added = {name: value for name, value in _DEFAULTS.items() if name not in given}
    engine = given.get("ENGINE_TYPE") or _engine_for(given.get("MODEL_PATH"))
    added["ENGINE_TYPE"] = engine
    default_model = engine == "llamacpp" and "MODEL_PATH" not in given
    if engine == "llamacpp":
        added |= {name: value for name, value in _LLAMACPP_DEFAULTS.items() if name not in given}
    if default_model:
        added["MODEL_PATH"] = str(cache_directory(environ) / DEFAULT_MODEL.file_name)
        added |= {"MODEL_NAME": DEFAULT_MODEL.name} if "MODEL_NAME" not in given else {}
    completed = {**environ, **added}
    return Plan(
        config=load_config(completed),
        environ=completed,
        default_model=default_model,
        llama_shim=engine == "llamacpp" and shutil.which(LLAMA_SERVER, path=environ.get("PATH")) is None,
        # Of what was said, not of what was added.
        warnings=tuple(misspelt_variables(environ)),
    )


def _given(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings somebody made, by variable name, wherever they were made."""
    given = {setting.env: environ[setting.env] for setting in SETTINGS if setting.env and environ.get(setting.env)}
    if file_name := environ.get(CONFIG_FILE_VARIABLE):
        try:
            values = read_config_file(Path(file_name), YAML_KEYS)
        except ConfigFileError:
            return given  # load_config reports it, with everything else that is wrong
        given = {s.env: str(values[s.yaml]) for s in SETTINGS if s.env and s.yaml in values} | given
    return given


def _engine_for(model_path: str | None) -> str:
    return "llamacpp" if model_path is None or model_path.lower().endswith(".gguf") else "vllm"


def obstacles(plan: Plan) -> Iterator[str]:
    """Yield one line for each thing that would keep the plan from working, and what to do about it."""
    config, path = plan.config, plan.environ.get("PATH")
    for tool in _TOOLS:
        if shutil.which(tool, path=path) is None:
            yield f"{tool} is not on PATH: install coreutils and util-linux"
    yield from key_file_problems(config)
    yield from _port_taken("WINGS_PORT", config.port, config.host, host=config.host)
    yield from _port_taken("ENGINE_PORT", config.engine_port, "127.0.0.1")
    if not plan.default_model:
        yield from _model_missing(config)
    if plan.llama_shim and importlib.util.find_spec("xllamacpp") is None:
        yield ("llama.cpp is not installed: pip install 'wings-infer[llamacpp]', or put its llama-server on PATH")
    if module := ENGINES[config.engine_type].python_module:
        yield from _module_missing(config.engine_type, module, path)


def _port_taken(variable: str, port: int, address: str, *, host: str = "") -> Iterator[str]:
    try:
        found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        yield cannot_listen(variable, port, error, host=host)
        return
    for family, kind, protocol, _, sockaddr in found:
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does; without it, connections closed a minute ago would count as "taken".
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(sockaddr)
                probe.listen()
            except OSError as error:
                yield cannot_listen(variable, port, error, host=host)
                return


def _model_missing(config: Config) -> Iterator[str]:
    path = config.model_path
    setting = f"MODEL_PATH={shown(path)}"
    is_llama = config.engine_type == "llamacpp"
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if is_llama or path.startswith(("/", "./", "../", "~")):
            advice = ""
            if path.startswith("~"):
                advice = ": only a shell knows what ~ is; write the whole path"
            elif is_llama and not path.lower().endswith(".gguf"):
                advice = ": llama.cpp needs a GGUF file that is on this machine"
            yield f"{setting}: {os.strerror(error.errno or 0)}{advice}"
        return
    if not os.access(path, os.R_OK):
        yield f"{setting}: may not be read by this user"
    elif is_llama and not stat.S_ISREG(mode):
        yield f"{setting}: llama.cpp needs a GGUF file, this is a directory or a special file"
    elif not is_llama and stat.S_ISDIR(mode) and not any(Path(path, name).exists() for name in _MODEL_FILES):
        yield f"{setting}: is no model's directory: there is no config.json in it"
    elif not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        yield f"{setting}: is neither a file nor a directory"


def _module_missing(engine: str, module: str, path: str | None) -> Iterator[str]:
    python = shutil.which("python3", path=path)
    if python is None:
        yield f"ENGINE_TYPE={engine} needs a python3 on PATH that has the module {module}; there is none"
        return
    # Found, not imported: importing an engine takes as long as starting it.
    finding = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run((python, "-c", finding), stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
        yield (
            f"ENGINE_TYPE={engine}: {python}, the first python3 on PATH, has no module {module}: "
            f"activate the environment it is installed in"
        )


def program(module: str) -> tuple[str, ...]:
    """Return the command that runs one of our modules with this very interpreter.

    Without `-P` a file of the current directory would be imported in place of the standard library's of that name.
    """
    package_parent = Path(__file__).resolve().parents[2]
    safe = () if package_parent == Path.cwd() else ("-P",)
    return (sys.executable, *safe, "-m", module)


def llama_shim() -> str:
    """Return the text of a shell script that is llama-server for whoever finds it on PATH."""
    return f'#!/bin/sh\nexec {shlex.join(program("wings_proxy.local.llama_server"))} "$@"\n'
