"""The client in the pod: HTTP with nothing but the standard library. `client.py GET PATH` or `client.py CHAT TOKENS`.

Prints one JSON object a line: status and body of a GET; each event of a chat as it comes, then how it ended.
"""

from __future__ import annotations

import http.client
import json
import sys


def get(path: str) -> None:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 9000, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        say(status=answer.status, body=answer.read().decode())
    except OSError as error:
        say(status=0, body=str(error))


def chat(tokens: int) -> None:
    body = {
        "messages": [{"role": "user", "content": "Count from one to one thousand. 请数数。"}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", 9000, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    say(status=answer.status, type=answer.headers["Content-Type"])
    text = b""
    try:
        # Not readline(): it takes a connection that was cut for the end of the answer.
        while piece := answer.read1():
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    say(data=line[6:].decode().strip())
    except (OSError, http.client.HTTPException) as error:
        say(end=type(error).__name__)
    else:
        say(end="whole")


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "GET":
        get(sys.argv[2])
    else:
        chat(int(sys.argv[2]))
