"""A program that takes llama-server's place in the tests of `up`: ready at once, answers "Hello 你好" to everything.

STAND_IN=fail: print a line and end with code 3; usage: not take an argument and end with code 2; endless: an answer
never ends; deaf: SIGTERM is ignored.
Standard library only, so that it starts within a few milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("STAND_IN", "")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(json.dumps({"status": "ok", "object": "list", "data": [{"id": "stand-in"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in ("Hello", " 你", "好"):
            self.event(json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}))
        while MODE == "endless":
            time.sleep(0.05)
            self.event(json.dumps({"choices": [{"index": 0, "delta": {"content": "."}}]}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        body = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        self.wfile.flush()

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    print("stand-in", " ".join(sys.argv[1:]), flush=True)
    if MODE == "fail":
        print("stand-in: no such luck", flush=True)
        sys.exit(3)
    if MODE == "usage":
        print("llama-server: unrecognized arguments: --gpu-memory=1", flush=True)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if MODE == "deaf" else lambda *_: os._exit(0))
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
