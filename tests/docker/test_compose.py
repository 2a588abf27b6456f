"""The Compose file as podman-compose runs it: only the images, the network and podman's own limits are other ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.podman import HERE, ROOT, Container, Images, environment, make_images, needs_podman, size, until

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.container, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Project:
    """A project that is up."""

    name: str

    def container(self, service: str) -> Container:
        return Container(f"{self.name}_{service}_1")


def override(images: Images) -> str:
    """What stands for the published images here, and a loopback interface for the network."""
    options = f"{size(64)},mode=0777,nosuid,nodev,noexec"
    return f"""
services:
  pod: {{image: "{images.base}", command: ["sleep", "600"], network_mode: none, ports: !reset []}}
  wings-llamacpp: {{image: "{images.sidecar}"}}
  llamacpp:
    image: "{images.engine}"
    environment: {{PATH: /usr/local/bin:/usr/bin:/bin}}
    volumes: ["{HERE / "client.py"}:/client.py:ro"]
volumes:
  shared-volume: {{driver_opts: {{o: "{options}"}}}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    needs_podman()
    beside = Path(sys.executable).with_name("podman-compose")
    program = str(beside) if beside.exists() else shutil.which("podman-compose")
    if program is None:
        assert not os.environ.get("CI"), "CI must run this: podman-compose is missing"
        pytest.skip("needs podman-compose: pip install '.[test]'")
    images = make_images()
    other = tmp_path / "override.yaml"
    other.write_text(override(images))
    name = f"wings-test-{uuid.uuid4().hex[:12]}"
    command = [
        *(program, f"--project-name={name}", "--profile=llamacpp"),
        *("-f", str(ROOT / "docker" / "compose.yaml"), "-f", str(other)),
    ]
    environ = environment() | {"MODELS": str(images.model.parent), "MODEL": images.model.name}

    def compose(*arguments: str) -> None:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        compose("up", "--detach", "--no-build")
        yield Project(name)
    finally:
        compose("down", "--volumes", "--timeout=2")


def test_a_laptop(project: Project) -> None:
    """It comes up, answers, and a sidecar that is restarted finds its engine again, in the network they share."""
    engine, sidecar = project.container("llamacpp"), project.container("wings-llamacpp")

    def state() -> str:
        answer = json.loads(engine.exec("python3", "/client.py", "GET", "/health"))
        return str(json.loads(answer["body"])["state"]) if answer["status"] else "gone"

    def answers() -> None:
        lines = [json.loads(line) for line in engine.exec("python3", "/client.py", "CHAT", "16").splitlines()]
        assert lines[0]["status"] == 200
        assert lines[-2:] == [{"data": "[DONE]"}, {"end": "whole"}]

    until(state, lambda seen: seen == "ready")
    answers()
    started = engine.started_at

    # What a person kills is not restarted by the policy.
    sidecar.signal("KILL")
    assert sidecar.wait(30) == 137
    sidecar.start()
    until(state, lambda seen: seen == "ready")

    answers()
    assert engine.started_at == started
