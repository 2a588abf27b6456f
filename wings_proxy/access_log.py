"""One structured record per forwarded request.

A record carries no body, key, header or query string. How it looks on a line is the formatter's business: the
fields are the record's `fields` attribute, a plain dictionary of JSON values.
"""

from __future__ import annotations

import logging

from wings_proxy.exchange import Exchange

logger = logging.getLogger("wings_proxy.access")


def log_exchange(exchange: Exchange, ended: float) -> None:
    """Write the record of a request that ended at monotonic time *ended*."""
    if not logger.isEnabledFor(logging.INFO):
        return
    started, first = exchange.started, exchange.first_byte
    fields: dict[str, object] = {
        "request_id": exchange.request_id,
        "route": exchange.route,
        "method": exchange.method,
        "status": exchange.status,
        "duration_seconds": round(ended - started, 6),
        "ttft_seconds": None if first is None else round(first - started, 6),
        "request_bytes": exchange.received_bytes,
        "response_bytes": exchange.sent_bytes,
        "chunks": exchange.chunks,
    }
    if exchange.abort_phase is not None:
        fields["abort_phase"] = exchange.abort_phase.value
    if exchange.fault is not None:
        fields["upstream_error"] = exchange.fault.value
    if exchange.error_code is not None:
        fields["error_code"] = exchange.error_code.value
    # Not logger.info(): walking the stack for a caller that is always this line costs more than all the rest.
    record = logging.LogRecord(logger.name, logging.INFO, __file__, 0, "request", None, None, "log_exchange")
    record.fields = fields
    logger.handle(record)
