"""docker/healthcheck.py, against sockets that answer as told."""

from __future__ import annotations

import runpy
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

PROGRAM = Path(__file__).parent.parent.parent / "docker" / "healthcheck.py"
SETTINGS = {"MODEL_PATH": "/models/m"}


@pytest.fixture
def healthcheck() -> Callable[[Mapping[str, str]], int]:
    loaded = runpy.run_path(str(PROGRAM))
    main: Callable[[Mapping[str, str]], int] = loaded["main"]
    # Two seconds are for a machine; the function's globals are its module's.
    loaded["main"].__globals__["_TIMEOUT_SECONDS"] = 0.2
    return main


@contextmanager
def server(answer: bytes, address: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """Answer one connection with these bytes and then say nothing more; give the port and what was asked."""
    asked: list[bytes] = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        done = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(1000))
                # In two pieces, as a network may.
                connection.sendall(answer[:5])
                connection.sendall(answer[5:])
                done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], asked
        finally:
            done.set()
            thread.join()


def test_a_sidecar_that_lives(healthcheck: Callable[[Mapping[str, str]], int]) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, asked):
        assert healthcheck({**SETTINGS, "WINGS_PORT": str(port)}) == 0
    assert asked[0].startswith(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"SSH-2.0-OpenSSH", b"", b"HTTP/1.1"])
def test_one_that_does_not(
    healthcheck: Callable[[Mapping[str, str]], int], answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(answer) as (port, _):
        assert healthcheck({**SETTINGS, "WINGS_PORT": str(port)}) == 1
    assert capsys.readouterr().out.startswith("/livez: ")


def test_nobody_listens(healthcheck: Callable[[Mapping[str, str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck({**SETTINGS, "WINGS_PORT": str(free_port())}) == 1
    assert "refused" in capsys.readouterr().out


def test_the_port_and_the_address_come_from_the_configuration(
    healthcheck: Callable[[Mapping[str, str]], int], tmp_path: Path
) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n", "127.0.0.9") as (port, _):
        config = tmp_path / "config.yaml"
        config.write_text(f"server: {{port: {port}, host: 127.0.0.9}}\n")
        assert healthcheck({**SETTINGS, "WINGS_CONFIG": str(config)}) == 0


def test_every_address_is_dialled_as_loopback(healthcheck: Callable[[Mapping[str, str]], int]) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        assert healthcheck({**SETTINGS, "WINGS_PORT": str(port), "WINGS_HOST": "0.0.0.0"}) == 0


def test_a_configuration_that_is_wrong(
    healthcheck: Callable[[Mapping[str, str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert healthcheck({"WINGS_PORT": "none"}) == 1
    assert "WINGS_PORT" in capsys.readouterr().out
