"""The key files the settings name: read before anything starts, and refused by the name of the setting."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from wings_proxy.config.kinds import shown
from wings_proxy.config.load import ConfigError
from wings_proxy.config.settings import Config
from wings_proxy.proxy.api_keys import parse_keys, read_key_file


def read_key_files(config: Config) -> bytes | None:
    """Return the key the engine asks for, None if it asks for none; the clients' keys are only looked at.

    Raises `ConfigError` with what is wrong in either file, never with a key.
    """
    if problems := tuple(key_file_problems(config)):
        raise ConfigError(problems)
    if not config.engine_api_key_file:
        return None
    return next(iter(parse_keys(read_key_file(Path(config.engine_api_key_file))[0])))


def key_file_problems(config: Config) -> Iterator[str]:
    """Yield one line for each key file that cannot be used."""
    for variable, name, one in (
        ("WINGS_API_KEYS_FILE", config.api_keys_file, False),
        ("WINGS_ENGINE_API_KEY_FILE", config.engine_api_key_file, True),
    ):
        if not name:
            continue
        try:
            keys = parse_keys(read_key_file(Path(name))[0])
            if one and len(keys) != 1:
                yield f"{variable}={shown(name)}: must hold one key, holds {len(keys)}"
        except OSError as error:
            # A Secret's files belong to root unless the pod has an fsGroup.
            user = f" for uid {os.getuid()}" if error.errno == errno.EACCES else ""
            yield f"{variable}={shown(name)}: cannot be read: {error.strerror}{user}"
        except ValueError as error:
            yield f"{variable}={shown(name)}: {error}"
