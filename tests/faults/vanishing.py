"""A client whose machine vanishes: no FIN, no reset, no more packets. To be run in a network of its own.

    unshare --net sh -c 'ip link set lo up && exec python -m tests.faults.vanishing VOLUME LOOP'

Prints one JSON object: how long the sidecar kept the engine's slot, and what it counted.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.program import Program, fake_engine_program, program
from tests.ports import free_port

VANISHING = "127.0.0.3"
BODY = json.dumps(
    {
        "model": "/models/tiny-qwen2",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "max_tokens": 8_000,
    }
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)


def vanish() -> None:
    """Let every packet to the client's address disappear; those in its favour win over the network's own route."""
    subprocess.run(["ip", "route", "add", "blackhole", f"{VANISHING}/32", "table", "local"], check=True)


def slot_kept(running: Program, client: socket.socket) -> float:
    """Return for how many seconds the request lives on after *client* has vanished."""
    began = time.monotonic()
    vanish()
    while running.metric("wings_requests_in_flight"):
        assert time.monotonic() - began < 60, "the slot was never given back"
        time.sleep(0.05)
    client.close()
    return time.monotonic() - began


def main() -> None:
    volume, loop = Path(sys.argv[1]), sys.argv[2]
    port = free_port()
    with (
        fake_engine_program(port, tokens=8_000, token_seconds=0.02),
        program(volume, port, WINGS_EVENT_LOOP=loop, WINGS_WRITE_STALL_SECONDS="1") as running,
        socket.socket() as client,
    ):
        client.settimeout(10)
        client.bind((VANISHING, 0))
        client.connect(("127.0.0.1", running.port))
        client.sendall(REQUEST)
        received = b""
        while received.count(b"data: ") < 5:
            received += client.recv(65536)
        seconds = slot_kept(running, client)
        told = {
            "seconds": seconds,
            "stalls": running.metric('wings_client_aborts_total{phase="stall"}'),
            "status_499": running.metric('wings_requests_total{code="499",route="/v1/chat/completions"}'),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
