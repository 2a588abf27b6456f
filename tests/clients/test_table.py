"""The table of clients names the versions that are installed, and nothing says where from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.clients.program import ENVIRONMENTS, HERE, KINDS, ROOT, Kind

TABLE = (HERE / "README.md").read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_client_stands_in_the_table_with_its_version(kind: Kind) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in kind.pins.items())
    assert f"| {kind.name} | {versions} |" in TABLE


def test_the_table_has_no_other_client() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", TABLE, re.MULTILINE)
    assert rows == ["client", *(kind.name for kind in KINDS), "curl"]


def test_the_version_of_node_is_the_one_installed() -> None:
    versions = json.loads((ENVIRONMENTS / "node" / "package.json").read_text())["optionalDependencies"].values()
    [version] = set(versions)
    assert f"version {version} from npm" in TABLE


def test_the_readme_leads_there() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert "(tests/clients/README.md)" in (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("pins", sorted(ENVIRONMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_of_python_is_pinned(pins: Path) -> None:
    lines = [line for line in pins.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


@pytest.mark.parametrize("lock", sorted(ENVIRONMENTS.glob("*/package-lock.json")), ids=lambda path: path.parent.name)
def test_every_package_of_node_is_pinned_by_its_hash_and_by_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "resolved" not in text
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert packages
    assert [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
