"""One line per forwarded request: how it went, and no body, key, header or query string.

It is written for every request, so it goes past `logging`: a record, its look-ups and its formatting cost a quarter of
all a request costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from wings_proxy.proxy.exchange import Exchange

# No value can hold a quote, a backslash or a control character: numbers, our own words, a request id and a trace id
# that were checked (`headers`), a method, which the parser has found to be a token (RFC 9110 §5.6.2).
_JSON: Final = (
    '{"time": "%s.%03d+00:00", "level": "info", "logger": "wings_proxy.access", "message": "request", '
    '"request_id": "%s", "route": "%s", "method": "%s", "status": %d, "duration_seconds": %.6f, "ttft_seconds": %s, '
    '"request_bytes": %d, "response_bytes": %d, "events": %d%s}'
)
_PLAIN: Final = (
    "%s.%03d+00:00 info    request request_id=%s route=%s method=%s status=%d duration_seconds=%.6f ttft_seconds=%s "
    "request_bytes=%d response_bytes=%d events=%d%s"
)


class AccessLog:
    """Formats the line of each request and hands it on."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        form: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Write lines of *form*, `json` or `plain`; *now* gives seconds since 1970."""
        self._write = write
        self._json = form == "json"
        self._line = _JSON if self._json else _PLAIN
        self._now = now
        self._second = -1
        self._date = ""

    def __call__(self, exchange: Exchange, ended: float) -> None:
        """Write the line of a request that ended at monotonic time *ended*."""
        now = self._now()
        second = int(now)
        if second != self._second:
            self._second = second
            self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        started, first = exchange.started, exchange.first_byte
        self._write(
            self._line
            % (
                self._date,
                (now - second) * 1000,
                exchange.request_id,
                exchange.route,
                exchange.method,
                exchange.status,
                ended - started,
                "null" if first is None else "%.6f" % (first - started),
                exchange.received_bytes,
                exchange.sent_bytes,
                exchange.events,
                "" if exchange.went_well and not exchange.trace_id else self._what_else(exchange),
            )
        )

    def _what_else(self, exchange: Exchange) -> str:
        pattern = ', "%s": "%s"' if self._json else " %s=%s"
        found = {
            "trace_id": exchange.trace_id or None,
            "abort_phase": exchange.abort_phase,
            "upstream_error": exchange.fault,
            "error_code": exchange.error_code,
        }
        return "".join(pattern % (name, value) for name, value in found.items() if value is not None)
