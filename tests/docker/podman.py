"""podman for the tests of the image: images made without a registry, and pods without a network.

A pod's containers share a loopback interface and nothing else; a third container in it plays the client. Everything
is named after this process and removed at the end.
"""

from __future__ import annotations

import asyncio
import atexit
import configparser
import hashlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from wings_proxy.local.default_model import ensure_model

Seen = TypeVar("Seen")

ROOT: Final = Path(__file__).parent.parent.parent
DOCKERFILE: Final = ROOT / "docker" / "Dockerfile"
HERE: Final = Path(__file__).parent
REPOSITORY: Final = "localhost/wings-infer-test"

# As the restricted Pod Security Standard has it, and no writable directory but the volumes.
LOCKED_DOWN: Final = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def needs_podman() -> None:
    """Skip the test where there is no podman; fail it in CI."""
    missing = [tool for tool in ("podman", "buildah", "mmdebstrap") if shutil.which(tool) is None]
    if missing:
        assert not os.environ.get("CI"), f"CI must run this: {', '.join(missing)} missing"
        pytest.skip(f"needs {', '.join(missing)}")


def podman(*arguments: str | Path, seconds: float = 60.0) -> str:
    """Run podman; return what it printed."""
    done = _podman(arguments, seconds)
    assert done.returncode == 0, (
        f"podman {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def _podman(arguments: Sequence[str | Path], seconds: float) -> subprocess.CompletedProcess[str]:
    command = ["podman", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment())


@cache
def environment() -> dict[str, str]:
    """Where no systemd runs (a container, a CI machine) podman must not ask it for cgroups, logs and limits."""
    environ = dict(os.environ)
    if not Path("/run/systemd/system").is_dir():
        directory = Path(tempfile.mkdtemp(prefix="wings-podman-"))
        # The settings are for every command of this process; the fixtures' own clean-up, which runs before, needs them.
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        files, files_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        (directory / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files_hard}", "nproc=4096:4096"]\n'
            'log_driver = "k8s-file"\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        environ["CONTAINERS_CONF"] = str(directory / "containers.conf")
    return environ


# Images.


@dataclass(frozen=True, slots=True)
class Images:
    """The base's stand-in, the image built on it, an engine's, and the model's file for that."""

    base: str
    sidecar: str
    engine: str
    model: Path


@cache
def make_images() -> Images:
    """Build what the tests run, once a session; most of it is there already the second time."""
    needs_podman()
    base = base_image()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    xllamacpp = setup["options.extras_require"]["llamacpp"].strip()
    return Images(
        base,
        build("sidecar", DOCKERFILE, {"BASE_IMAGE": base}),
        build("engine", HERE / "engine.Dockerfile", {"BASE_IMAGE": base, "XLLAMACPP": xllamacpp}),
        asyncio.run(ensure_model(os.environ, print)),
    )


def base_image() -> str:
    """Return the name of the stand-in for the base image, made unless it is there."""
    script = HERE / "base_image.sh"
    name = f"{REPOSITORY}/base:{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"
    if _podman(["image", "exists", name], 60).returncode:
        _thrice([str(script), name])
    return name


def build(name: str, dockerfile: Path, arguments: Mapping[str, str], *options: str) -> str:
    """Build an image from this work tree; return its name. What reaches the package index here reaches it there."""
    with tempfile.TemporaryDirectory() as directory:
        _thrice(
            [
                *("podman", "build", "--format=docker", "--network=host", f"--tag={REPOSITORY}/{name}"),
                *(f"--build-arg={key}={value}" for key, value in arguments.items()),
                *_pip_secrets(Path(directory)),
                *(f"--file={dockerfile}", *options, str(ROOT)),
            ]
        )
    return f"{REPOSITORY}/{name}"


def _pip_secrets(directory: Path) -> Iterator[str]:
    """Yield the options that hand pip's own settings on: an index to ask, a certificate to trust."""
    settings = configparser.ConfigParser(interpolation=None)
    settings["global"] = {}
    if index := os.environ.get("PIP_INDEX_URL"):
        settings["global"]["index-url"] = index
    certificate = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    if certificate:
        settings["global"]["cert"] = "/run/secrets/ca.pem"
        yield f"--secret=id=ca.pem,src={certificate}"
    with (directory / "pip.conf").open("w") as file:
        settings.write(file)
    yield f"--secret=id=pip.conf,src={directory / 'pip.conf'}"


def _thrice(command: Sequence[str]) -> None:
    # Package indexes fail now and then; three tries, then it is an answer.
    said = ""
    for pause in (5, 10, 0):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
        if done.returncode == 0:
            return
        said = done.stdout[-3000:] + done.stderr[-3000:]
        time.sleep(pause)
    raise AssertionError(f"{' '.join(command)}\n{said}")


def inspect(image: str) -> dict[str, Any]:
    """Return what an image says of itself."""
    described: dict[str, Any] = json.loads(podman("image", "inspect", image))[0]
    return described


def remove(image: str) -> None:
    """Remove an image nobody needs any more."""
    podman("image", "rm", "--force", image)


# Containers.


@dataclass(slots=True)
class Container:
    """One container of a pod; it is started again by the test, as a kubelet would."""

    name: str

    def start(self) -> None:
        podman("start", self.name)

    def signal(self, name: str) -> None:
        podman("kill", f"--signal={name}", self.name)

    def wait(self, seconds: float) -> int:
        """Wait for its end; return the exit code."""
        return int(podman("wait", "--interval=50ms", self.name, seconds=seconds))

    def exec(self, *command: str, seconds: float = 60.0) -> str:
        return podman("exec", self.name, *command, seconds=seconds)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Run a command in it whose output is read as it comes."""
        return subprocess.Popen(
            ["podman", "exec", self.name, *command], stdout=subprocess.PIPE, text=True, env=environment()
        )

    @property
    def started_at(self) -> str:
        return podman("inspect", "--format={{.State.StartedAt}}", self.name).strip()

    @property
    def printed(self) -> str:
        done = _podman(["logs", self.name], 60)
        return done.stdout + done.stderr


@dataclass(slots=True)
class Pod:
    """Containers with one loopback interface and one volume in memory, as a kubelet makes them."""

    name: str = field(default_factory=lambda: f"wings-test-{uuid.uuid4().hex[:12]}")
    containers: list[Container] = field(default_factory=list)

    def run(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> Container:
        """Start a container with the volume mounted."""
        container = Container(f"{self.name}-{name}")
        self.containers.append(container)
        podman(
            *("run", "--detach", f"--pod={self.name}", f"--name={container.name}", "--pull=never", "--no-healthcheck"),
            *(*LOCKED_DOWN, f"--volume={self.name}:/shared-volume", *options, image, *command),
        )
        return container

    def story(self) -> str:
        """What every container printed, for a test that failed."""
        return "\n".join(f"--- {container.name}\n{container.printed[-6000:]}" for container in self.containers)


def size(mebibytes: int) -> str:
    """Return the mount option of a tmpfs of this size, in pages: podman 4.3 takes `size=` for a quota of the disk's."""
    return f"nr_blocks={(mebibytes << 20) // resource.getpagesize()}"


@contextmanager
def new_pod(*, mebibytes: int, options: str) -> Iterator[Pod]:
    """Give a pod without a network, with a volume in memory; it is removed with all that is in it."""
    pod = Pod()
    podman(
        "volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", f"--opt=o={size(mebibytes)},{options}", pod.name
    )
    try:
        podman("pod", "create", f"--name={pod.name}", "--network=none", "--share=net")
        try:
            yield pod
        finally:
            podman("pod", "rm", "--force", "--time=0", pod.name)
    finally:
        podman("volume", "rm", "--force", pod.name)


def until(look: Callable[[], Seen], wanted: Callable[[Seen], object], seconds: float = 120.0) -> Seen:
    """Look until what is seen is as wanted; return it."""
    deadline = time.monotonic() + seconds
    while not wanted(seen := look()):
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {seen}"
        time.sleep(0.05)
    return seen
