"""What `deploy/` renders to, and the programs that render and check it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parent.parent.parent
DEPLOY: Final = ROOT / "deploy"
# Where `make .venv-deploy/.tools` puts them: kubernetes-validate needs versions of packages of its own.
PROGRAMS: Final = ROOT / ".venv-deploy" / "bin"

BASE: Final = "base"
OVERLAYS: Final = tuple(sorted(f"overlays/{path.name}" for path in (DEPLOY / "overlays").iterdir()))
COMPONENTS: Final = tuple(
    sorted(
        str(path.parent.relative_to(DEPLOY))
        for path in DEPLOY.rglob("kustomization.yaml")
        if "kind: Component" in path.read_text("utf-8")
    )
)
# A component is rendered with the base alone, its name as it stands here.
EVERYTHING: Final = (BASE, *OVERLAYS, *COMPONENTS)

Resource = dict[str, Any]


def program(name: str) -> str:
    """Return the path of a checker; skips the test where there is none, but not in CI."""
    path = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}")
    if path is None:
        assert not os.environ.get("CI"), f"CI must run this: make .venv-deploy/.tools ({name} is missing)"
        pytest.skip(f"no {name}: make .venv-deploy/.tools")
    return path


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a program that must end well; return what it printed."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _kustomized(directory: Path) -> tuple[Resource, ...]:
    printed = run(program("kubectl"), "kustomize", directory)
    return tuple(resource for resource in yaml.safe_load_all(printed) if resource is not None)


@cache
def _rendered(name: str) -> str:
    if name not in COMPONENTS:
        return json.dumps(_kustomized(DEPLOY / name))
    with tempfile.TemporaryDirectory() as directory:
        relative = os.path.relpath(DEPLOY.resolve(), Path(directory).resolve())
        text = f"resources: [{relative}/{BASE}]\ncomponents: [{relative}/{name}]\n"
        (Path(directory) / "kustomization.yaml").write_text(text, "utf-8")
        return json.dumps(_kustomized(Path(directory)))


def together(overlay: str, components: Sequence[str], directory: Path, *, inside: bool) -> list[Resource]:
    """Return an overlay with further *components*: *inside* its own file, or in a file of one's own on top of it."""
    copy = shutil.copytree(DEPLOY, directory / "deploy")
    file = copy / overlay / "kustomization.yaml" if inside else directory / "kustomization.yaml"
    own = yaml.safe_load(file.read_text("utf-8")) if inside else {"resources": [f"deploy/{overlay}"]}
    where = "../.." if inside else "deploy"
    own["components"] = [*own.get("components", ()), *(f"{where}/{name}" for name in components)]
    file.write_text(yaml.safe_dump(own), "utf-8")
    return list(_kustomized(file.parent))


def rendered(name: str) -> list[Resource]:
    """Return the resources of the base, of an overlay, or of the base with a component: copies, free to change."""
    resources: list[Resource] = json.loads(_rendered(name))
    return resources


def one(name: str, kind: str, named: str | None = None) -> Resource:
    """Return the only resource of a kind, or the one of that name (with a hash behind it, if it has one)."""
    found = [
        resource
        for resource in rendered(name)
        if resource["kind"] == kind and (named is None or resource["metadata"]["name"].rpartition("-")[0] == named)
    ]
    assert len(found) == 1, f"{name}: {len(found)} of {kind}"
    return found[0]


def templates(name: str) -> dict[str, Resource]:
    """Return the pod templates by what they are for: "pod", or "leader" and "worker"."""
    found: dict[str, Resource] = {}
    for resource in rendered(name):
        if resource["kind"] == "Deployment":
            found["pod"] = resource["spec"]["template"]
        elif resource["kind"] == "LeaderWorkerSet":
            found["leader"] = resource["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
            found["worker"] = resource["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    return found


def serving_pod(name: str) -> Resource:
    """Return the spec of the pod with the sidecar in it."""
    by_role = templates(name)
    spec: Resource = by_role.get("leader", by_role.get("pod", {}))["spec"]
    return spec


def sidecar(name: str) -> Resource:
    """Return the sidecar's container."""
    pod = serving_pod(name)
    found = [each for each in (*pod.get("initContainers", ()), *pod["containers"]) if each["name"] == "wings-infer"]
    assert len(found) == 1
    container: Resource = found[0]
    return container


def engine(name: str) -> Resource:
    """Return the engine's container, beside the sidecar's."""
    found = [each for each in serving_pod(name)["containers"] if each["name"] != "wings-infer"]
    assert len(found) == 1
    container: Resource = found[0]
    return container


def environment(name: str) -> dict[str, str]:
    """Return the sidecar's variables, as the kubelet would set them (in a group: as LeaderWorkerSet would)."""
    data = one(name, "ConfigMap", "wings-infer-config")["data"]
    variables = {"LWS_LEADER_ADDRESS": "wings-infer-0.wings-infer.default", "LWS_GROUP_SIZE": "2"}
    own = {each["name"]: each["value"] for each in sidecar(name).get("env", ())}
    for variable, value in variables.items():
        own = {key: text.replace(f"$({variable})", value) for key, text in own.items()}
    return {**data, **own}
