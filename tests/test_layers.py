"""The architecture holds: imports point one way, pure modules are pure, every module has its test file.

The rules and every exception to them are in setup.cfg, section `wings:layers`.
"""

from __future__ import annotations

import ast
import configparser
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "wings_proxy"

_setup = configparser.ConfigParser()
_setup.read(ROOT / "setup.cfg", "utf-8")


def name_of(file: Path) -> str:
    """Return the module's name within the package; the package itself is called by its own."""
    parts = file.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".") or PACKAGE


_PARSED = {file: ast.parse(file.read_text("utf-8")) for file in sorted((ROOT / PACKAGE).rglob("*.py"))}
# A package that only says what it is for is no module: it has no place, no test and nothing to check.
TREES = {name_of(file): tree for file, tree in _PARSED.items() if len(tree.body) > 1}
FILES = {name_of(file): file for file in _PARSED if name_of(file) in TREES}
_NAMED = set(_setup["wings:layers"]["order"].replace("|", " ").split())


def words(line: str) -> list[str]:
    """Return the modules a line names; `engines.*` are those of `engines` that have no place of their own."""
    return [
        name for word in line.replace("|", " ").split() for name in (others(word) if word.endswith(".*") else [word])
    ]


def others(pattern: str) -> list[str]:
    return [name for name in FILES if name.startswith(pattern[:-1]) and name not in _NAMED]


ORDER = [words(line) for line in _setup["wings:layers"]["order"].strip().splitlines()]
PURE, COVERED, OWN_TASKS, ENVIRONMENT, PRINT, LONG, TESTED_ELSEWHERE = (
    words(_setup["wings:layers"][key])
    for key in ("pure", "covered", "own_tasks", "environment", "print", "long", "tested_elsewhere")
)
LEVEL = {name: -level for level, line in enumerate(ORDER) for name in line}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield every module imported anywhere in the tree, also late and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                yield f"{PACKAGE}.{inner}" if inner in FILES and node.module.startswith(PACKAGE) else node.module


def own_imports_of(name: str) -> set[str]:
    found = {module for module in imports_of(TREES[name]) if module.split(".")[0] == PACKAGE}
    return {module.removeprefix(f"{PACKAGE}.") for module in found}


def test_every_module_has_one_place_in_the_layers() -> None:
    listed = [name for line in ORDER for name in line]
    assert sorted(listed) == sorted(set(listed))
    assert sorted(listed) == sorted(FILES), "[wings:layers] order in setup.cfg names exactly the modules there are"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name: str) -> None:
    upward = {other for other in own_imports_of(name) if LEVEL[other] >= LEVEL[name]}
    assert not upward, f"{name} may not import {upward}, see [wings:layers] in setup.cfg"


def test_the_exceptions_name_modules_that_need_them() -> None:
    for names in (PURE, COVERED, OWN_TASKS, ENVIRONMENT, PRINT, LONG, TESTED_ELSEWHERE):
        assert set(names) <= set(FILES)
    assert [name for name in OWN_TASKS if not list(unowned_tasks(TREES[name]))] == []
    assert [name for name in ENVIRONMENT if not list(reads_environment(TREES[name]))] == []
    assert [name for name in PRINT if not list(prints(TREES[name]))] == []
    assert [name for name in LONG if lines_of(name) <= MOST_LINES] == []
    assert [name for name in TESTED_ELSEWHERE if test_file_of(name).exists()] == []


# -- pure modules ------------------------------------------------------------------------------------------------------

# Of the standard library, what only computes.
COMPUTES = {
    *("__future__", "collections", "collections.abc", "dataclasses", "enum", "functools", "types", "typing"),
    *("bisect", "hashlib", "html", "json", "math", "re", "shlex", "urllib.parse"),
}
# `launch` reads the script's body, which comes with the package; `narrator` knows signals by their names.
# `engines` finds its own modules.
ALSO = {
    "handover.launch": {"importlib.resources"},
    "local.narrator": {"signal"},
    "engines": {"importlib", "pkgutil"},
}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_decide_without_doing(name: str) -> None:
    foreign = {module for module in imports_of(TREES[name]) if module.split(".")[0] != PACKAGE}
    assert foreign <= COMPUTES | ALSO.get(name, set())
    impure = {other for other in own_imports_of(name) if other not in (*PURE, PACKAGE)}
    assert not impure, f"{name} is not pure as long as it imports {impure}"
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"open", "input", "print", "exec", "eval", "compile", "__import__"}
    assert not any(isinstance(node, (ast.AsyncFunctionDef, ast.Await)) for node in ast.walk(TREES[name]))


# -- bans --------------------------------------------------------------------------------------------------------------

MOST_LINES = 400


def unowned_tasks(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that make a task nobody waits for: any but those of a TaskGroup, called `group` everywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call.endswith(("create_task", "ensure_future")) and call != "group.create_task":
                yield call


def reads_environment(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.environb", "os.getenv"):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (alias.name for alias in node.names if alias.name in ("environ", "environb", "getenv"))


def prints(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write"):
            yield ast.unparse(node.func)


def lines_of(name: str) -> int:
    return len(FILES[name].read_text("utf-8").splitlines())


def test_file_of(name: str) -> Path:
    *package, module = name.split(".")
    own = ROOT.joinpath("tests", *package, f"test_{module}.py")
    # The engines are one subject, which all that their room has tells of.
    return ROOT / "tests/engines" if "engines" in (*package, module) and not own.exists() else own


test_file_of.__test__ = False  # type: ignore[attr-defined]  # pytest: a helper, whatever its name begins with


def test_the_rooms_make_no_circle() -> None:
    """A folder that needs another is not needed by it, not by a third one either."""
    rooms = {name.split(".")[0] for name in FILES if "." in name} | {"engines"}
    needs = {room: set[str]() for room in rooms}
    for name in FILES:
        room = name.split(".")[0]
        needs.get(room, set()).update({other.split(".")[0] for other in own_imports_of(name)} & rooms - {room})
    graphlib.TopologicalSorter(needs).prepare()


@pytest.mark.parametrize("name", FILES)
def test_every_task_has_an_owner(name: str) -> None:
    assert name in OWN_TASKS or not list(unowned_tasks(TREES[name]))


@pytest.mark.parametrize("name", FILES)
def test_the_environment_is_read_once_where_the_process_begins(name: str) -> None:
    assert name in ENVIRONMENT or not list(reads_environment(TREES[name]))


@pytest.mark.parametrize("name", FILES)
def test_only_commands_print(name: str) -> None:
    assert name in PRINT or not list(prints(TREES[name]))


@pytest.mark.parametrize("name", FILES)
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    assert name in LONG or lines_of(name) <= MOST_LINES


@pytest.mark.parametrize("name", FILES)
def test_every_module_has_its_test_file(name: str) -> None:
    assert name in TESTED_ELSEWHERE or test_file_of(name).exists()


@pytest.mark.parametrize("name", FILES)
def test_nothing_sleeps_or_tells_the_time_of_the_wall(name: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"time.sleep", "time.time", "datetime.now", "datetime.utcnow", "sleep"}


# A test file that tells the story of two modules.
TOLD_WITH = {"config.settings": "config.load", "server.openapi": "server.docs"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({name.removesuffix(name.partition("engines")[2]) for name in (*PURE, *COVERED)})
)
def test_its_own_test_file_runs_all_of_a_module(name: str, tmp_path: Path) -> None:
    tests = test_file_of(TOLD_WITH.get(name, name))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "--cov-branch"]
    command += [f"--cov={PACKAGE}.{name}", "--cov-report=term-missing", "--cov-fail-under=100"]
    environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "coverage")}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stdout


# -- importing ---------------------------------------------------------------------------------------------------------


def test_the_sidecar_imports_nothing_it_does_not_run_with() -> None:
    """`serve` starts in a fraction of a second and needs no more than its dependencies."""
    code = "import sys, wings_proxy.serve; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.split())
    assert not loaded & {"pytest", "hypothesis", "openai", "xllamacpp", "numpy", "setuptools", "requests", "httpx"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_module_can_be_imported_first(name: str) -> None:
    module = PACKAGE if name == PACKAGE else f"{PACKAGE}.{name}"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {module}"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
