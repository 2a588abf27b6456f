"""The engines the sidecar knows, by `ENGINE_TYPE`: each module of this package that has an `ENGINE` is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from wings_proxy.engines.base import Engine


def _engines() -> Iterator[Engine]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        engine = getattr(importlib.import_module(module.name), "ENGINE", None)
        if isinstance(engine, Engine):
            yield engine


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType({engine.name: engine for engine in _engines()})
