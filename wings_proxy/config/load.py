"""Load the configuration: environment over YAML file over defaults, once, into one frozen `Config`.

Everything wrong is found and reported in one go, one line each, before anything starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wings_proxy.config.file import ConfigFileError, read_config_file
from wings_proxy.config.kinds import looks_secret, shown, without_passwords
from wings_proxy.config.settings import SETTINGS, Config, Setting


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one line for each thing that is wrong."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# The one variable that is not a setting: it says where the settings are.
CONFIG_FILE_VARIABLE: Final = "WINGS_CONFIG"

YAML_KEYS: Final[Mapping[str, str | None]] = {setting.yaml: setting.env for setting in SETTINGS}

# A Service named `wings…` or `engine…` makes the kubelet inject these into every later pod of the namespace
# (kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_LINK_NAME: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_[A-Z]+(_[A-Z]+)?$")
_SERVICE_LINK_PORT: Final = re.compile(r"(tcp|udp|sctp)://")


_PREFIX: Final = "WINGS_"
_VARIABLES: Final = (*(setting.env for setting in SETTINGS if setting.env is not None), CONFIG_FILE_VARIABLE)
# Other programs read variables of these names, so they say nothing about us.
_ANYBODYS: Final = frozenset({"PORT", "HOST", "LOG_LEVEL", "LOG_FORMAT", "ACCESS_LOG", "CONFIG"})
# MODLE_PATH and MAX_MODEL_LENGTH are near enough, DP_SIZE (vLLM's) and MODULEPATH (Environment Modules') are not.
_MISSPELT: Final = 0.88

# Set in the engine's command after everything the user gave; an abbreviation of them would come to stand apart.
_OURS_ALONE: Final = ("--host", "--port")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A valid configuration with, for each field, the place its value came from."""

    config: Config
    sources: Mapping[str, str]
    # Lines for a person: nothing is wrong, and something is perhaps not what was meant.
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, value as text and source of every setting; what looks like a secret is hidden."""
        for setting in SETTINGS:
            text = setting.kind.to_text(getattr(self.config, setting.field))
            yield setting.name, without_passwords(text), self.sources[setting.field]


def config_path(environ: Mapping[str, str]) -> Path | None:
    """Return where the configuration file is, if there is to be one."""
    name = environ.get(CONFIG_FILE_VARIABLE)
    return Path(name) if name else None


def load_config(environ: Mapping[str, str]) -> Config:
    """Return the configuration the environment asks for.

    Raises `ConfigError` with every problem found.
    """
    return resolve(environ).config


def resolve(environ: Mapping[str, str]) -> Resolved:
    """Like `load_config`, and tell for each field where its value came from."""
    environ = {name: value for name, value in environ.items() if value != "" and not _is_service_link(name, value)}
    problems: list[str] = []
    from_file: Mapping[str, object] | None = {}
    if (file_name := environ.get(CONFIG_FILE_VARIABLE)) is not None:
        try:
            from_file = read_config_file(Path(file_name), YAML_KEYS)
        except ConfigFileError as error:
            problems += [f"{CONFIG_FILE_VARIABLE}={shown(file_name)}: {line}" for line in error.problems]
            from_file = error.values
    problems += _unknown_variables(environ)

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    wrong: set[str] = set()
    for setting in SETTINGS:
        try:
            found = _find(setting, environ, from_file or {})
            sources[setting.field] = "default" if found is None else found[0]
            if found is not None:
                values[setting.field] = found[1]
            elif setting.required:
                wrong.add(setting.field)
                # It may well stand in the file that could not be read.
                if from_file is not None:
                    problems.append(f"{setting.name} is not set: {setting.meaning}")
        except ValueError as error:
            wrong.add(setting.field)
            problems.append(str(error))
    if not values.get("model_name"):
        values["model_name"] = _last_part(values.get("model_path", ""))
    config = Config(**values)
    if from_file is not None:
        problems += _contradictions(config, wrong)
    warnings = tuple(misspelt_variables(environ))
    if problems:
        raise ConfigError((*problems, *warnings))
    return Resolved(config, sources, warnings)


def _find(setting: Setting, environ: Mapping[str, str], file: Mapping[str, object]) -> tuple[str, Any] | None:
    """Return where the setting's value comes from, and the value. Raises `ValueError` with the line to report."""
    raw: object
    if setting.env is not None and setting.env in environ:
        source, name, raw = "env", setting.env, environ[setting.env]
        parse: Callable[[Any], Any] = setting.kind.from_text
    elif setting.yaml in file:
        source, name, raw = "file", setting.yaml, file[setting.yaml]
        parse = setting.kind.from_yaml
    else:
        return None
    try:
        return f"{source} {name}", parse(raw)
    except ValueError as error:
        # A kind that knows better than "allowed" what is wrong says so in the error.
        reason = str(error) or f"must be {setting.kind.allowed}"
        raise ValueError(f"{name}{setting.kind.disclosed(raw)}: {reason}") from None


def _last_part(path: str) -> str:
    return PurePosixPath(path).name or path


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK_NAME.search(name)) or (name.endswith("_PORT") and bool(_SERVICE_LINK_PORT.match(value)))


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    # Compared without the prefix: it would make everything look alike.
    known = {name.removeprefix(_PREFIX): name for name in _VARIABLES}
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in _VARIABLES:
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), known, n=1)
            hint = f"; did you mean {known[near[0]]}?" if near else ""
            yield f"{_disclosed(name, environ)}: no such variable{hint}"


def misspelt_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that is none of ours and looks as if it was meant to be.

    Of the variables that are not ours nothing is known, so they can be no mistake: a line is all there is.
    """
    without_prefix = {name.removeprefix(_PREFIX): name for name in _VARIABLES if name.startswith(_PREFIX)}
    for name in sorted(environ):
        if name in _VARIABLES or name.startswith(_PREFIX):
            continue
        meant = None if name in _ANYBODYS else without_prefix.get(name)
        if meant is None:
            near = difflib.get_close_matches(name.upper(), _VARIABLES, n=1, cutoff=_MISSPELT)
            meant = near[0] if near else None
        if meant is not None and meant not in environ:
            yield f"{_disclosed(name, environ)}: is not read; did you mean {meant}?"


def _disclosed(name: str, environ: Mapping[str, str]) -> str:
    """Return a variable and its value, unless it is a key set in the wrong variable: messages end in logs."""
    return shown(name) if looks_secret(name) else f"{shown(name)}={shown(environ[name])}"


def _contradictions(config: Config, wrong: set[str]) -> Iterator[str]:
    """Yield what is wrong between settings that are each right."""
    if config.port == config.engine_port and not wrong & {"port", "engine_port"}:
        yield (
            f"WINGS_PORT={config.port}: is also ENGINE_PORT; the sidecar and the engine share one network, "
            "give them different ports"
        )
    for word in config.engine_extra_args:
        flag = word.partition("=")[0].replace("_", "-")
        whole = next((known for known in _OURS_ALONE if known != flag and known.startswith(flag)), None)
        if whole is not None and len(flag) > len("--"):
            yield (
                f"ENGINE_EXTRA_ARGS: {shown(flag)}: Python engines read this as {whole}, which is the sidecar's; "
                "write the whole name of the flag you mean"
            )
    needed = config.hold_bound_seconds + config.engine_stop_seconds + 5.0
    ends = {"quiet_seconds", "drain_seconds", "engine_stop_seconds", "grace_period_seconds"}
    if config.grace_period_seconds < needed and not wrong & ends:
        yield (
            f"WINGS_GRACE_PERIOD_SECONDS={config.grace_period_seconds:g}: must be at least {needed:g} = "
            f"WINGS_QUIET_SECONDS {config.quiet_seconds:g} + WINGS_DRAIN_SECONDS {config.drain_seconds:g} + 5 + "
            f"WINGS_ENGINE_STOP_SECONDS {config.engine_stop_seconds:g} + 5, or the kubelet cuts the end short"
        )
