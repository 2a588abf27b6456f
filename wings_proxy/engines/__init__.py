"""The engines the sidecar knows, by `ENGINE_TYPE`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from wings_proxy.engines import llamacpp, sglang, vllm
from wings_proxy.engines.base import Engine

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {engine.name: engine for engine in (vllm.ENGINE, sglang.ENGINE, llamacpp.ENGINE)}
)
