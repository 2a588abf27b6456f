"""Where clients connect. What it sets on its sockets every connection inherits, at no cost of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import selectors
import socket
from collections.abc import Sequence
from typing import Final

from aiohttp import web

_log = logging.getLogger(__name__)

_LONGEST_IDLE: Final = 32767
"""Seconds; Linux takes no more for TCP_KEEPIDLE (MAX_TCP_KEEPIDLE)."""
_UNSENT_BYTES: Final = 64 * 1024
"""What may wait in the kernel for a client that reads slowly, beside what is on its way. Without a bound that is
megabytes of the container's memory each, and from one time there is room again to the next a slow reader needs minutes:
it would look like one that does not read (tcp(7), TCP_NOTSENT_LOWAT)."""
_ACCEPTS_PER_TURN: Final = 256
"""So many cost a few milliseconds, as long as nobody serves them yet."""
_TAKEN_PER_TURN: Final = 64
"""So many cost some milliseconds: each becomes a transport and a protocol."""
_FEWEST_WAITING: Final = _TAKEN_PER_TURN
_RETRY_SECONDS: Final = 1.0
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def _options(silence_seconds: float) -> list[tuple[int, int, int]]:
    """Return the socket options of a client's connection, as far as the system has them.

    Those about time give a peer up that says nothing at all. A machine that loses its power or its network sends no
    FIN. What it was sent is sent again for a quarter of an hour (tcp_retries2), and where nothing is on its way nobody
    would ever know. TCP_USER_TIMEOUT (tcp(7), RFC 5482) bounds the first, keep-alive probes the second, and it bounds
    these as well.
    """
    seconds = min(math.ceil(silence_seconds), _LONGEST_IDLE)
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", max(1, seconds // 4)),
        ("TCP_USER_TIMEOUT", math.ceil(silence_seconds * 1000)),
        ("TCP_NOTSENT_LOWAT", _UNSENT_BYTES),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class Listener(web.BaseSite):
    """A port; the connections it accepts give a peer up that was silent for *silence_seconds* when it had to speak.

    It accepts by itself, some connections each turn of the loop. uvloop 0.23 accepts one: among uploads that keep the
    loop at work for 20 ms a turn, a kubelet's probe waited seconds for those that came before it. asyncio accepts as
    many as the backlog holds: a thousand at once are a turn of a quarter of a second.

    To accept costs a twentieth of what it takes to serve. So all are accepted first, and then taken some each turn:
    who has said something before who is silent. Behind thousands that connect and say nothing a probe waits for hardly
    any of them; the kernel's own queue has one order only.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str | None,
        port: int,
        *,
        backlog: int,
        silence_seconds: float,
        most_waiting: int = _FEWEST_WAITING,
    ) -> None:
        """Prepare for *host*, all addresses if None; so many may be accepted and not served yet."""
        super().__init__(runner, backlog=backlog)
        self._host = host
        self._port = port
        self._options = _options(silence_seconds)
        self._sockets: list[socket.socket] = []
        self._most_waiting = max(_FEWEST_WAITING, most_waiting)
        self._waiting: dict[socket.socket, None] = {}
        self._saying: selectors.BaseSelector | None = None
        self._taking: asyncio.Handle | None = None
        self._accepted: set[asyncio.Task[object]] = set()
        self._retries: dict[socket.socket, asyncio.TimerHandle] = {}

    @property
    def name(self) -> str:
        """Where it listens, for aiohttp."""
        return f"http://{self._host or '*'}:{self._port}"

    async def start(self) -> None:
        """Listen; raises OSError if that cannot be."""
        await super().start()
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, proto=socket.IPPROTO_TCP
        )
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            self._sockets.append(_listening(family, address, self._backlog, self._options))
        self._saying = selectors.DefaultSelector()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)

    async def stop(self) -> None:
        """Listen no more; what was accepted goes on."""
        loop = asyncio.get_running_loop()
        for retry in self._retries.values():
            retry.cancel()
        for sock in self._sockets:
            loop.remove_reader(sock)
            sock.close()
        while self._waiting:
            self._take(next(iter(self._waiting)))
        if self._taking is not None:
            self._taking.cancel()
        if self._saying is not None:
            self._saying.close()
        if self._accepted:
            await asyncio.wait(self._accepted)
        await super().stop()

    def _accept(self, sock: socket.socket) -> None:
        assert self._saying is not None
        for _ in range(min(_ACCEPTS_PER_TURN, self._most_waiting - len(self._waiting))):
            try:
                client, _ = sock.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue  # gone while it waited
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.error("no connection can be accepted for %g s: %s", _RETRY_SECONDS, error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock)
                self._retries[sock] = loop.call_later(_RETRY_SECONDS, loop.add_reader, sock, self._accept, sock)
                break
            self._waiting[client] = None
            self._saying.register(client, selectors.EVENT_READ)
        if self._taking is None:
            self._take_some()

    def _take_some(self) -> None:
        """Serve some of those that wait, the next ones in the next turn."""
        assert self._saying is not None
        heard = [key.fileobj for key, _ in self._saying.select(0)] if len(self._waiting) > _TAKEN_PER_TURN else []
        for client in [*heard, *self._waiting][:_TAKEN_PER_TURN]:
            if client in self._waiting:
                self._take(client)
        self._taking = asyncio.get_running_loop().call_soon(self._take_some) if self._waiting else None

    def _take(self, client: socket.socket) -> None:
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        assert self._saying is not None
        del self._waiting[client]
        self._saying.unregister(client)
        task = loop.create_task(loop.connect_accepted_socket(server, client), name="accept")
        self._accepted.add(task)
        task.add_done_callback(self._taken)

    def _taken(self, task: asyncio.Task[object]) -> None:
        self._accepted.discard(task)
        if (error := task.exception()) is not None:
            _log.warning("a connection could not be taken: %s", error)


def _listening(
    family: int, address: Sequence[object], backlog: int, options: Sequence[tuple[int, int, int]]
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in options:
            sock.setsockopt(*option)
        sock.bind(tuple(address))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
