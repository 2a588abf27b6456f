"""Who may read our own endpoints, and which web pages may use us from a browser.

Probes are open: the kubelet has no key. Everything else of ours asks for one as soon as there are keys, whatever is
added later: this sidecar stands on a public load balancer.

Without CORS a browser lets no page of another origin read an answer (WHATWG Fetch §3.2). Engines allow every page, with
credentials; what they say about it never passes (`headers`), only origins that the configuration names are allowed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from wings_proxy.proxy.api_errors import ApiError
from wings_proxy.proxy.api_keys import Authorizer
from wings_proxy.proxy.headers import offered_keys
from wings_proxy.server.own_answers import PROBE_PATHS

_OPEN: Final = PROBE_PATHS | {"/engine/status"}
_METHODS: Final = "GET, POST, OPTIONS"
_SECONDS: Final = "600"


# A browser asks its user for a name and a password, and for nothing else: the password is the key.
_CHALLENGES: Final = (
    b"Bearer",
    b'Basic realm="wings-infer: any name, an API key as password", charset="UTF-8"',
)


def _with_password_as_key(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return a field of Basic credentials (RFC 7617) as the Bearer one it stands for, any other as it is."""
    name, value = field
    scheme, _, encoded = value.partition(b" ")
    if name.lower() != b"authorization" or scheme.lower() != b"basic":
        return field
    try:
        _, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except ValueError:
        return field
    return (name, b"Bearer " + password) if colon else field


class Access:
    """Decides; one per process."""

    def __init__(
        self, authorize: Authorizer | None = None, *, metrics_auth: bool = False, origins: Iterable[str] = ()
    ) -> None:
        """Take who knows the keys (None: there are none), and the origins of `WINGS_CORS_ORIGINS`."""
        self._authorize = authorize
        self._open = _OPEN if metrics_auth else _OPEN | {"/metrics"}
        self._origins = frozenset(origins)

    def refusal(self, path: str, fields: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """Return the refusal of a request for one of our own paths, or None to let it pass."""
        if self._authorize is None or path in self._open:
            return None
        refusal = self._authorize(offered_keys([_with_password_as_key(field) for field in fields]))
        if refusal is not None:
            refusal = replace(refusal, challenges=_CHALLENGES)
        return refusal

    def allowed(self, origin: str | None) -> dict[str, str]:
        """Return the fields that let a page of *origin* read an answer; none if it may not or did not ask."""
        if not self._origins:
            return {}
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
        # The answer differs by the origin: a cache must not give one page's to another.
        fields = {"Vary": "Origin"}
        if origin in self._origins and origin is not None:
            fields |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*"}
        return fields

    @property
    def allowed_lines(self) -> Callable[[str | None], bytes] | None:
        """What tells the same as lines of a head, for the byte path; None if no page is ever allowed."""
        if not self._origins:
            return None

        def lines(origin: str | None) -> bytes:
            fields = self.allowed(origin)
            return b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in fields.items())

        return lines

    def preflight(self, method: str, headers: Mapping[str, str]) -> dict[str, str] | None:
        """Return the fields that answer a browser's question before a request, None if this is no such question.

        It comes without a key; the request itself will have to show one.
        """
        if not self._origins or method != "OPTIONS":
            return None
        origin, asked = headers.get("Origin"), headers.get("Access-Control-Request-Method")
        if origin is None or asked is None:
            return None
        fields = self.allowed(origin)
        if "Access-Control-Allow-Origin" in fields:
            fields |= {
                "Access-Control-Allow-Methods": _METHODS,
                # `*` does not stand for Authorization (WHATWG Fetch §4.9): it has to be named.
                "Access-Control-Allow-Headers": "Authorization, *",
                "Access-Control-Max-Age": _SECONDS,
            }
        return fields
