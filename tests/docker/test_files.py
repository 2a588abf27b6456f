"""The files under docker/: they pin what they promise to pin, and agree with the code."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from wings_proxy import __version__
from wings_proxy.config.load import load_config
from wings_proxy.config.settings import SETTINGS
from wings_proxy.handover.launch import engine_stub

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", Path(__file__).with_name("engine.Dockerfile")]
PYTHONS = ["3.11", "3.12", "3.13"]
MACHINES = ["x86_64", "aarch64"]


def tool(name: str) -> str:
    """Return the path of a checker beside this Python or on PATH; skip without it, fail in CI."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        assert not os.environ.get("CI"), f"CI must run this: {name} is missing"
        pytest.skip(f"needs {name}: pip install '.[test]'")
    return found


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


# Requirements.


def pinned(name: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each requirement of a file with its hashes."""
    text = (DOCKER / name).read_text("ascii").replace("\\\n", " ")
    for line in text.splitlines():
        if not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            yield Requirement(requirement), [value.strip() for value in hashes]


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_every_package_has_one_version_and_its_hashes(name: str) -> None:
    found = list(pinned(name))

    assert found
    assert len({canonicalize_name(requirement.name) for requirement, _ in found}) == len(found)
    for requirement, hashes in found:
        assert re.fullmatch(r"==[0-9][0-9.]*", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert len(set(hashes)) == len(hashes), requirement
        assert [value for value in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", value)] == [], requirement


def test_the_pinned_versions_are_those_the_package_asks_for() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    versions = {canonicalize_name(r.name): str(r.specifier)[2:] for r, _ in pinned("requirements.txt")}

    for line in setup["options"]["install_requires"].split():
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), line


@pytest.mark.parametrize("python", PYTHONS)
def test_nothing_that_a_pinned_package_needs_is_left_out(python: str) -> None:
    """The image is built with --no-deps: what is not in the file is not in the image."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython"}
    requirements = [r for r, _ in pinned("requirements.txt")]
    there = {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate(environment)}
    # What each needs is known of those that are installed here.
    for name in {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate()}:
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment):
                assert canonicalize_name(needed.name) in there, f"{name} needs {needed}"


@pytest.mark.slow
@pytest.mark.container
@pytest.mark.timeout(400)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_there_is_a_wheel_of_everything_for(python: str, machine: str, tmp_path: Path) -> None:
    """The hashes cover both architectures and every Python the base image may have."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", f"--dest={tmp_path}"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", f"--requirement={DOCKER / 'requirements.txt'}"),
        *("--implementation=cp", f"--python-version={python}"),
        *(f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")),
    ]
    for pause in (5, 10):  # a package index fails now and then
        if subprocess.run(command, capture_output=True, timeout=120).returncode == 0:
            break
        time.sleep(pause)
    else:
        subprocess.run(command, check=True, timeout=120)

    of_machine = [wheel.name for wheel in tmp_path.glob(f"*_{machine}.whl")]
    assert len(of_machine) >= 7, sorted(tmp_path.iterdir())
    assert {name.partition("-")[0] for name in of_machine} >= {"aiohttp", "multidict", "pyyaml", "uvloop", "yarl"}


# The Dockerfile.


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments on one line."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def test_the_base_is_an_exact_tag_and_no_digest_is_made_up() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)

    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", arguments["BASE_IMAGE"])
    assert [rest for word, rest in instructions() if word == "FROM"] == ["${BASE_IMAGE} AS builder", "${BASE_IMAGE}"]
    text = (DOCKER / "Dockerfile").read_text("utf-8")
    assert not re.search(r"sha256:[0-9a-f]", text)
    # The command that looks the digest up names the same image.
    assert text.count(arguments["BASE_IMAGE"]) == 3


def test_the_dockerfile_agrees_with_the_code() -> None:
    last = dict(instructions())
    port = next(setting.default for setting in SETTINGS if setting.env == "WINGS_PORT")

    assert ("ARG", f"VERSION={__version__}") in instructions()
    assert last["EXPOSE"] == str(port)
    assert last["USER"] == "10001:10001"
    assert (json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])) == (["wings-proxy"], ["serve"])
    assert "--require-hashes" in (DOCKER / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    check(tool("hadolint"), "--failure-threshold=style", str(file))


def test_shellcheck_finds_nothing() -> None:
    check(tool("shellcheck"), str(Path(__file__).with_name("base_image.sh")))


def test_nothing_private_is_in_the_build_context() -> None:
    """An allow list: a key or a virtual environment in the work tree is never sent to the builder."""
    first, *others = [
        line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"
    ]
    assert first == "*"
    allowed = {line[1:].partition("/")[0] for line in others if line.startswith("!")}
    assert allowed == {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", "docker", "wings_proxy"}


# The compose file.


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    return loaded


def services(compose: dict[str, Any], profile: str) -> dict[str, dict[str, Any]]:
    """Return the services of a profile but the one that holds the network: the sidecar, then its engine."""
    found = {name: what for name, what in compose["services"].items() if profile in what["profiles"] and name != "pod"}
    assert list(found) == [f"wings-{profile}", profile]
    return found


def test_compose_is_what_the_specification_says() -> None:
    check(tool("check-jsonschema"), "--builtin-schema=vendor.compose-spec", str(DOCKER / "compose.yaml"))


@pytest.mark.parametrize("profile", ["llamacpp", "vllm"])
def test_the_sidecar_in_compose_accepts_its_settings(compose: dict[str, Any], profile: str) -> None:
    sidecar, _ = services(compose, profile).values()
    # What is not set in the user's shell.
    environ = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for name, value in sidecar["environment"].items()}
    config = load_config(environ)
    assert config.engine_type == profile
    assert config.model_path.startswith("/models/")
    # Nobody is cut short: Compose waits for as long as the pod would.
    for service in services(compose, profile).values():
        assert service["stop_grace_period"] == f"{config.grace_period_seconds:g}s"


@pytest.mark.parametrize("profile", ["llamacpp", "vllm"])
def test_the_engine_in_compose_waits_like_that_of_a_pod(compose: dict[str, Any], profile: str) -> None:
    sidecar, engine = services(compose, profile).values()

    entrypoint = [word.replace("$$", "$") for word in engine["entrypoint"]]
    assert entrypoint == ["sh", "-c", engine_stub("/shared-volume/start_command.sh")]
    # One network and one volume in memory for the two; a sidecar that restarts loses neither.
    assert {service["network_mode"] for service in (sidecar, engine)} == {"service:pod"}
    assert all("shared-volume:/shared-volume" in service["volumes"] for service in (sidecar, engine))
    options = compose["volumes"]["shared-volume"]["driver_opts"]
    assert (options["type"], options["o"].split(",")[:2]) == ("tmpfs", ["size=64m", "mode=0777"])


def test_nobody_in_compose_has_rights_to_give_away(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "cap_add", "pid", "userns_mode", "devices"}, name
        assert re.fullmatch(r".+:\S*\d\S*", service["image"]), f"{name}: an exact tag"
    # An inference server without a key is for this machine only.
    assert compose["services"]["pod"]["ports"] == ["127.0.0.1:${PORT:-9000}:9000"]


def test_the_images_version_in_compose_is_ours(compose: dict[str, Any]) -> None:
    images = {service["image"] for name, service in compose["services"].items() if name.startswith("wings-")}
    assert images == {f"ghcr.io/wings-infer/wings-infer:{__version__}"}


def test_the_readmes_commands_name_what_is_there(compose: dict[str, Any]) -> None:
    text = (DOCKER / "README.md").read_text("utf-8")
    commands = [line for block in text.split("```sh\n")[1:] for line in block.partition("```")[0].splitlines()]

    assert [line for line in commands if "docker compose" in line]
    for line in commands:
        for word in shlex.split(line, comments=True):
            if word.startswith(("docker/", "tests/")):
                assert (ROOT / word).exists(), line
        if match := re.search(r"--profile (\w+)", line):
            assert services(compose, match[1])
    default = dict(part.split("=", 1) for word, part in instructions() if word == "ARG" and "=" in part)["BASE_IMAGE"]
    assert default in text
