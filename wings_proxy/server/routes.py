"""Which path goes where: decided on the bytes the client sent, never decoded, so no spelling leads elsewhere."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from urllib.parse import unquote

from wings_proxy.engines.base import Engine

# No escapes, no empty segment, no `.` or `..`: what the engine could not read as another path.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:@!$&'()*+,=-]+)+/?")


class Audience(enum.Enum):
    """Who answers a path."""

    SIDECAR = enum.auto()
    ENGINE = enum.auto()
    NOBODY = enum.auto()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes; `template` is its metric label: the known path, or `other`."""

    audience: Audience
    template: str
    reason: str = ""


# Our own endpoints (DESIGN: they keep the reference's names and add Kubernetes' and NIM's).
OWN_PATHS = frozenset(
    {
        "/",
        "/status.json",
        "/health",
        "/livez",
        "/readyz",
        "/startupz",
        "/livez/engine",
        "/v1/health/live",
        "/v1/health/ready",
        "/engine/status",
        "/metrics",
        "/docs",
        "/openapi.json",
    }
)
# What `/docs` loads.
PAGE_FILES = frozenset(
    {
        "/docs/engine.json",
        "/docs/favicon.png",
        "/docs/start.js",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui-standalone-preset.js",
    }
)


def _is_one_segment(part: str) -> bool:
    """Return whether the part stays one segment, and no step up, once the engine has decoded it.

    A slash in it may be escaped: model names have them.
    """
    return not {"", ".", ".."} & set(unquote(part).replace("\\", "/").split("/"))


def _bare(path: str) -> str:
    """Return the path without what a lenient server might overlook."""
    return "/".join(part.partition(";")[0] for part in path.lower().split("/")).rstrip("/") or "/"


class Routes:
    """The routes of one engine under one configuration."""

    def __init__(self, engine: Engine, *, allow_admin: bool, allow_all: bool) -> None:
        self._exact: dict[str, Route] = {}
        self._patterns: list[tuple[list[str], Route]] = []
        self._closed: dict[str, Route] = {}
        refusal = "administration of the engine is closed; WINGS_ALLOW_ADMIN=true opens it"
        for path in engine.admin_paths:
            self._add(path, Audience.ENGINE if allow_admin else Audience.NOBODY, "" if allow_admin else refusal)
        for path in engine.inference_paths:
            self._add(path, Audience.ENGINE)
        for path in OWN_PATHS | PAGE_FILES:
            self._add(path, Audience.SIDECAR)
        self._other = Route(
            Audience.ENGINE if allow_all else Audience.NOBODY,
            "other",
            "" if allow_all else "no such path; WINGS_ALLOW_ALL_PATHS=true forwards unknown paths",
        )

    @property
    def templates(self) -> list[str]:
        """Every metric label there can be for a forwarded request, `other` included."""
        routes = [*self._exact.values(), *(route for _, route in self._patterns), self._other]
        return sorted({route.template for route in routes if route.audience is Audience.ENGINE})

    def find(self, target: str) -> Route:
        """Return the route of a request target as received, for example `/v1/models?x=1`."""
        path = target.partition("?")[0]
        found = self._exact.get(path)
        if found is not None:
            return found
        parts = path.split("/")
        for pattern, route in self._patterns:
            if len(pattern) == len(parts) and all(
                expected == part or (expected == "*" and _is_one_segment(part))
                for expected, part in zip(pattern, parts, strict=True)
            ):
                return route
        if self._other.audience is Audience.ENGINE and not _PLAIN_PATH.fullmatch(path):
            # The engine might decode `/%73leep` or `//sleep` into a path that is closed.
            return Route(Audience.NOBODY, "other", "the path must be plain: no escapes, no empty or dot segments")
        if self._other.audience is Audience.ENGINE and (closed := self._closed.get(_bare(path))) is not None:
            # Some engine, one day, may be lenient about case, a slash at the end or parameters of a segment.
            return closed
        return self._other

    def _add(self, path: str, audience: Audience, reason: str = "") -> None:
        route = Route(audience, path.replace("*", "{id}"), reason)
        if "*" in path:
            self._patterns.append((path.split("/"), route))
        else:
            self._exact[path] = route
        if audience is not Audience.ENGINE:
            self._closed[_bare(path)] = Route(Audience.NOBODY, "other", reason or "write the path as it is")
