"""Clients for `test_load.py`, in a process of their own: what they cost must not be taken for what the sidecar does.

`python -m tests.faults.load_clients WHAT PORT COUNT`; prints a line when it has begun, and JSON when it is over.

- `idle`: connections that say nothing, until standard input closes.
- `slow`: event streams without end, read at 2 kB a second each, until they are cut or standard input closes.
- `chunks`: requests with bodies without end, in chunks of one byte, again and again until standard input closes.
- `herd`: requests again and again, until each had something else than 503.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time

STREAM = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
    b"X-Bench: upload=0 events=100000000 interval=0\r\n\r\n"
)
MODELS = b"GET /v1/models HTTP/1.0\r\nHost: x\r\n\r\n"


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ONE_BYTE_CHUNKS = b"1\r\na\r\n" * 40_000


async def until_told() -> None:
    """Return when standard input closes."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def connected(port: int, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        # As over a network: with the segments of loopback the sender's kernel would keep megabytes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def idle(port: int, count: int) -> dict[str, object]:
    open_sockets = []
    for _ in range(0, count, 200):
        open_sockets += await asyncio.gather(*(connected(port) for _ in range(200)))
    print("begun", flush=True)
    await until_told()
    closed = 0
    for sock in open_sockets:
        try:
            closed += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            closed += 1
        sock.close()
    return {"open": len(open_sockets) - closed, "closed": closed}


async def slow(port: int, count: int) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    begun = asyncio.Semaphore(0)

    async def reader() -> bool:
        """Whether it was cut."""
        with await connected(port, 4096) as sock:
            await loop.sock_sendall(sock, STREAM)
            try:
                await loop.sock_recv(sock, 100)
                begun.release()
                while await loop.sock_recv(sock, 1000):  # noqa: ASYNC110 - a slow reader
                    await asyncio.sleep(0.5)
            except ConnectionError:
                pass
            return True

    readers = [asyncio.create_task(reader(), name="slow reader") for _ in range(count)]
    for _ in range(count):
        await begun.acquire()
    print("begun", flush=True)
    told = asyncio.create_task(until_told(), name="standard input")
    all_cut = asyncio.create_task(asyncio.wait(readers), name="all cut")
    await asyncio.wait([told, all_cut], return_when=asyncio.FIRST_COMPLETED)
    cut = sum(task.done() and task.result() for task in readers)
    for task in (told, all_cut, *readers):
        task.cancel()
    await asyncio.wait([told, all_cut, *readers])
    return {"cut": cut}


async def chunks(port: int, count: int) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    sent = 0

    async def sender() -> None:
        nonlocal sent
        while True:
            with await connected(port) as sock:
                try:
                    await loop.sock_sendall(sock, CHUNKED)
                    while True:
                        await loop.sock_sendall(sock, ONE_BYTE_CHUNKS)
                        sent += len(ONE_BYTE_CHUNKS)
                except ConnectionError:
                    pass  # more than a body may be, or answered

    senders = [asyncio.create_task(sender(), name="sender") for _ in range(count)]
    print("begun", flush=True)
    await until_told()
    for task in senders:
        task.cancel()
    await asyncio.wait(senders)
    return {"sent": sent}


async def herd(port: int, count: int) -> dict[str, object]:
    refused: list[int] = []

    async def client() -> int:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(MODELS)
            status = int((await reader.read()).split(b" ")[1])
            writer.close()
            if status != 503:
                return status
            refused.append(status)
            await asyncio.sleep(0.2)

    clients = [asyncio.create_task(client(), name="client") for _ in range(count)]
    while len(refused) < count:  # noqa: ASYNC110 - all of them were there and were sent away
        await asyncio.sleep(0.05)
    print("begun", flush=True)
    statuses = await asyncio.gather(*clients)
    return {"served": statuses.count(200), "refused": len(refused)}


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    what = {"idle": idle, "slow": slow, "chunks": chunks, "herd": herd}[sys.argv[1]]
    began = time.monotonic()
    told = asyncio.run(what(int(sys.argv[2]), int(sys.argv[3])))
    print(json.dumps({**told, "seconds": round(time.monotonic() - began, 3)}), flush=True)


if __name__ == "__main__":
    main()
