"""The image as it is run: read-only, nobody's uid, no capability, no network but the pod's own loopback.

Beside it, as another uid, llama.cpp with a real model in an image of its own, waiting for the script like a stock
image. podman plays the container runtime, the test the kubelet.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.podman import (
    DOCKERFILE,
    HERE,
    LOCKED_DOWN,
    ROOT,
    Container,
    Images,
    Pod,
    build,
    inspect,
    make_images,
    new_pod,
    podman,
    remove,
    until,
)
from wings_proxy import __version__
from wings_proxy.handover.launch import engine_stub

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.container, pytest.mark.timeout(600)]

SIDECAR_UID, ENGINE_UID, CLIENT_UID = 10001, 10002, 10003
ADDED_MB = 45
# All of it but what is the kernel's, and links into these.
_TOP = ["boot", "etc", "home", "media", "mnt", "opt", "root", "run", "shared-volume", "srv", "tmp", "usr", "var"]
# Long enough that what happens in the middle of a stream happens in the middle.
LONG, SHORT = 400, 24


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images()


# What is in it.


_LIST = """
import hashlib, os, stat, sys
for top in sys.argv[1:]:
    for directory, directories, names in os.walk(top):
        for name in [".", *names, *(d for d in directories if os.path.islink(os.path.join(directory, d)))]:
            path = os.path.normpath(os.path.join(directory, name))
            s = os.lstat(path)
            what = ""
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as file:
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(s.st_mode):
                what = os.readlink(path)
            print(path, f"{s.st_uid}:{s.st_gid}", stat.filemode(s.st_mode), what)
"""


def files(image: str, *directories: str) -> dict[str, str]:
    """Return each path below the directories with owner, mode, and the digest of a file or the target of a link."""
    printed = podman(
        *("run", "--rm", "--network=none", "--user=0:0", "--entrypoint=python3", image, "-ISc", _LIST, *directories)
    )
    return dict(line.split(" ", 1) for line in printed.splitlines())


def test_two_builds_give_the_same_files(images: Images) -> None:
    again = build("sidecar-again", DOCKERFILE, {"BASE_IMAGE": images.base}, "--no-cache")

    first, second = (files(image, "/opt", "/shared-volume") for image in (images.sidecar, again))
    remove(again)

    assert len(first) > 800
    assert first == second


def test_what_is_added_to_the_base(images: Images) -> None:
    """Nothing but our directory and the volume's mount point; nobody but root may write to it, nothing is setuid."""
    everywhere = [f"/{name}" for name in _TOP]
    before, after = (files(image, *everywhere) for image in (images.base, images.sidecar))
    # Written by podman for every container.
    by_podman = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"}
    added = {path: what for path, what in after.items() if before.get(path) != what and path not in by_podman}

    print(f"added to the base: {len(added)} files, directories and links")
    assert {path for path in added if not path.startswith("/opt/wings-infer")} == {"/shared-volume"}
    assert added.pop("/shared-volume").startswith("0:0 drwxrwxrwx")
    assert [path for path, what in added.items() if not re.match(r"0:0 ([-d]rw[x-](r-[x-]){2}|l)", what)] == []
    assert not [path for path in added if re.search(r"/(pip|setuptools|activate)\b(?!\.px)", path)]
    assert before.keys() - after.keys() == set()


def test_how_much_is_added_to_the_base(images: Images) -> None:
    added = inspect(images.sidecar)["Size"] - inspect(images.base)["Size"]
    print(f"added to the base: {added / 1e6:.1f} MB")
    assert 20e6 < added <= ADDED_MB * 1e6


def test_what_the_image_says_of_itself(images: Images) -> None:
    config = inspect(images.sidecar)["Config"]

    assert config["User"] == f"{SIDECAR_UID}:{SIDECAR_UID}"
    assert (config["Entrypoint"], config["Cmd"]) == (["wings-proxy"], ["serve"])
    assert config["ExposedPorts"] == {"9000/tcp": {}}
    # Of the builder's variables none is left.
    assert {line.partition("=")[0] for line in config["Env"]} == {
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        *(["container"] if "container=podman" in config["Env"] else []),
    }
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["base.name"] == images.base
    assert labels.keys() >= {"title", "description", "licenses", "source", "documentation", "revision"}


def test_every_module_it_needs_is_compiled(images: Images) -> None:
    """Nothing is compiled at a start, or it would be at every start."""
    script = (
        "import sys; import wings_proxy.serve, wings_proxy.cli, uvloop;"
        "from importlib.machinery import SourceFileLoader as L;"
        "from pathlib import Path;"
        "print([n for n, m in sys.modules.items() if m.__spec__ and isinstance(m.__spec__.loader, L)"
        " and not Path(m.__spec__.cached).exists()])"
    )
    printed = podman(
        "run", "--rm", "--network=none", "--entrypoint=python3", *LOCKED_DOWN, images.sidecar, "-c", script
    )
    assert printed.strip() == "[]"


# How it runs.


@dataclass(slots=True)
class Deployment:
    """The pod with its two containers and a client."""

    pod: Pod
    images: Images
    sidecar: Container
    engine: Container
    client: Container

    def get(self, path: str) -> tuple[int, str]:
        answer = json.loads(self.client.exec("python3", "/client.py", "GET", path).strip())
        return answer["status"], answer["body"]

    def health(self) -> dict[str, Any]:
        _, body = self.get("/health")
        health: dict[str, Any] = json.loads(body) if body.startswith("{") else {}
        return health

    def until_state(self, state: str) -> dict[str, Any]:
        try:
            return until(self.health, lambda health: health.get("state") == state)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.pod.story()}") from None

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.client.exec("cat", "/shared-volume/engine.status"))
        return status

    def volume(self) -> dict[str, str]:
        """Return each file of the volume with its owner and mode."""
        lines = self.client.exec("find", "/shared-volume", "-mindepth", "1", "-printf", "%P %U %m %y\n")
        return dict(line.split(" ", 1) for line in lines.splitlines())


@dataclass(slots=True)
class Stream:
    """A chat whose events are read one by one."""

    process: subprocess.Popen[str]

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def begin(self) -> dict[str, Any]:
        """Return status and type once a few events have come."""
        head = self.line()
        for _ in range(5):
            assert "data" in self.line()
        return head

    def finish(self) -> tuple[list[str], str]:
        """Return the data of the other events, and how it ended."""
        events = []
        while "end" not in (line := self.line()):
            events.append(line["data"])
        assert self.process.wait(30) == 0
        return events, line["end"]


@pytest.fixture
def deployment(images: Images, tmp_path: Path) -> Iterator[Deployment]:
    """Everything started; the sidecar is configured by a file, as from a ConfigMap."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    settings = {
        "engine": {"type": "llamacpp", "max_num_seqs": 2},
        "model": {"path": f"/models/{images.model.name}", "max_len": 2048},
        "drain": {"quiet_seconds": 1, "drain_seconds": 60, "engine_stop_seconds": 10},
        "probe": {"interval_seconds": 0.5},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    config.chmod(0o644)
    size, _, options = compose["volumes"]["shared-volume"]["driver_opts"]["o"].partition(",")
    mebibytes = int(size.removeprefix("size=").removesuffix("m"))
    with new_pod(mebibytes=mebibytes, options=options) as pod:
        yield Deployment(
            pod,
            images,
            # Without a command: what the image does by itself.
            pod.run(
                "sidecar",
                images.sidecar,
                options=(f"--volume={config}:/etc/wings/config.yaml:ro", "--env=WINGS_CONFIG=/etc/wings/config.yaml"),
            ),
            pod.run(
                "engine",
                images.engine,
                *("sh", "-c", engine_stub("/shared-volume/start_command.sh")),
                options=(f"--user={ENGINE_UID}:{ENGINE_UID}", f"--volume={images.model.parent}:/models:ro"),
            ),
            pod.run(
                "client",
                images.base,
                *("sleep", "3600"),
                options=(f"--user={CLIENT_UID}:{CLIENT_UID}", f"--volume={HERE / 'client.py'}:/client.py:ro"),
            ),
        )


@pytest.fixture
def chat(deployment: Deployment) -> Iterator[Any]:
    """Begin a streamed chat of so many tokens."""
    streams: list[Stream] = []

    def begin(tokens: int) -> Stream:
        stream = Stream(deployment.client.popen("python3", "-u", "/client.py", "CHAT", str(tokens)))
        streams.append(stream)
        return stream

    yield begin
    for stream in streams:
        stream.process.kill()
        stream.process.wait(10)
        assert stream.process.stdout is not None
        stream.process.stdout.close()


def answers(deployment: Deployment, chat: Any) -> None:
    """A short chat comes whole."""
    stream = chat(SHORT)
    head = stream.begin()
    events, end = stream.finish()
    assert (head["status"], events[-1], end) == (200, "[DONE]", "whole"), deployment.pod.story()


def test_it_runs_with_no_rights_at_all(deployment: Deployment, chat: Any) -> None:
    deployment.until_state("ready")

    status = dict(
        line.split(":\t", 1) for line in deployment.sidecar.exec("cat", "/proc/1/status").splitlines() if ":\t" in line
    )
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert (status["Uid"].split(), status["Gid"].split()) == ([str(SIDECAR_UID)] * 4, [str(SIDECAR_UID)] * 4)
    # The kernel's own view of its mounts: what is not the volume, or the kernel's, is read-only.
    writable = {
        fields[1]
        for fields in map(str.split, deployment.sidecar.exec("cat", "/proc/self/mounts").splitlines())
        if "rw" in fields[3].split(",") and not fields[1].startswith(("/dev", "/proc", "/sys", "/etc/", "/run/"))
    }
    assert writable == {"/shared-volume"}
    # Loopback is all there is.
    assert deployment.sidecar.exec("ls", "/sys/class/net").split() == ["lo"]

    # The script of one uid, run by another.
    files = deployment.volume()
    assert files["start_command.sh"].startswith(f"{SIDECAR_UID} ")
    assert {files[name].split()[0] for name in ("engine.status", "engine.alive", "engine.log")} == {str(ENGINE_UID)}
    answers(deployment, chat)
    assert deployment.volume()["hold"].startswith(f"{SIDECAR_UID} ")

    check = inspect(deployment.images.sidecar)["Healthcheck"]["Test"]
    assert deployment.sidecar.exec(*check[1:]).strip() == "/livez: HTTP/1.1 200"


_KILL_ENGINE = """
import os, pathlib, signal
[pid] = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/cmdline")
         if b"/opt/llama/llama_server.py" in p.read_bytes().split(b"\\0")]
os.kill(pid, signal.SIGKILL)
"""


@pytest.mark.parametrize("dies", ["engine", "container"])
def test_an_engine_that_crashes_and_comes_back(deployment: Deployment, chat: Any, dies: str) -> None:
    """Alone, or with its container's process number 1: a stream is told, and the same sidecar serves the next run."""
    deployment.until_state("ready")
    run = deployment.status()["run"]
    sidecar_started = deployment.sidecar.started_at
    stream = chat(LONG)
    assert stream.begin() == {"status": 200, "type": "text/event-stream"}

    if dies == "engine":
        deployment.engine.exec("python3", "-c", _KILL_ENGINE)
    else:
        deployment.engine.signal("KILL")

    assert deployment.engine.wait(30) == 137
    events, end = stream.finish()
    assert "error" in json.loads(events[-1]), events[-3:]
    assert "[DONE]" not in events
    assert end == "IncompleteRead"
    assert deployment.until_state("failed")["reason"] == "killed"
    assert deployment.get("/readyz")[0] == 503
    assert deployment.get("/livez")[0] == 200

    deployment.engine.start()

    deployment.until_state("ready")
    assert deployment.status()["run"] != run
    assert deployment.sidecar.started_at == sidecar_started
    answers(deployment, chat)


def test_a_sidecar_that_comes_back_adopts_the_engine(deployment: Deployment, chat: Any) -> None:
    deployment.until_state("ready")
    before, engine_started = deployment.status(), deployment.engine.started_at
    script = deployment.client.exec("stat", "--format=%i %y", "/shared-volume/start_command.sh")

    deployment.sidecar.signal("KILL")
    assert deployment.sidecar.wait(30) == 137
    assert deployment.get("/livez")[0] == 0
    deployment.sidecar.start()

    deployment.until_state("ready")
    assert deployment.status() == before
    assert deployment.engine.started_at == engine_started
    assert deployment.client.exec("stat", "--format=%i %y", "/shared-volume/start_command.sh") == script
    answers(deployment, chat)


@pytest.mark.parametrize("first", ["engine", "sidecar"])
def test_a_pod_that_is_deleted_under_a_stream(deployment: Deployment, chat: Any, first: str) -> None:
    """Both get SIGTERM, in any order; the stream comes whole, new requests do not, and both end with 0."""
    deployment.until_state("ready")
    stream = chat(LONG)
    stream.begin()

    order = [deployment.engine, deployment.sidecar]
    for container in order if first == "engine" else reversed(order):
        container.signal("TERM")
    assert until(lambda: deployment.get("/readyz")[0], lambda status: status != 200, 10) == 503
    asked = time.monotonic()
    assert deployment.get("/livez")[0] == 200

    events, end = stream.finish()
    assert (events[-1], end) == ("[DONE]", "whole"), deployment.pod.story()
    assert deployment.sidecar.wait(30) == 0, deployment.pod.story()
    assert deployment.engine.wait(30) == 0, deployment.pod.story()
    print(f"SIGTERM to the {first} first: {len(events)} events later, both ended, {time.monotonic() - asked:.1f} s")
    assert "Traceback" not in deployment.sidecar.printed
    assert "hold" not in deployment.volume()


def test_a_pod_that_is_deleted_when_idle(deployment: Deployment) -> None:
    """Process number 1 hears the signal in both; nothing was forwarded, so nothing is waited for."""
    deployment.until_state("ready")
    asked = time.monotonic()

    deployment.sidecar.signal("TERM")
    deployment.engine.signal("TERM")

    assert (deployment.sidecar.wait(30), deployment.engine.wait(30)) == (0, 0), deployment.pod.story()
    print(f"idle: both ended {time.monotonic() - asked:.1f} s after SIGTERM")


def test_an_engine_that_still_waits_for_its_script(images: Images) -> None:
    """Process number 1 is a shell then, and ends at once all the same."""
    with new_pod(mebibytes=1, options="mode=0777") as pod:
        engine = pod.run("engine", images.engine, "sh", "-c", engine_stub("/shared-volume/start_command.sh"))
        engine.signal("TERM")
        assert engine.wait(10) == 143


def test_a_wrong_configuration_ends_it_with_2_and_says_why(images: Images) -> None:
    with new_pod(mebibytes=1, options="mode=0777") as pod:
        sidecar = pod.run("sidecar", images.sidecar, options=("--env=MODEL_PATH=/m", "--env=WINGS_PORT=none"))
        assert sidecar.wait(10) == 2
        assert "WINGS_PORT" in sidecar.printed
