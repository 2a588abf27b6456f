"""A client as a program that is told what to do; see `programs/stories.py` for what it is told and answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENTS = HERE / "environments"
INSTALLED = ROOT / ".clients"
# Node.js as the clients' own releases ask for it: the system's is often older.
NODE = next(iter(INSTALLED.glob("node/node_modules/node-linux-*/bin/node")), INSTALLED / "node" / "node")


@dataclass(frozen=True, slots=True)
class Kind:
    """One client: its program, and what runs it."""

    name: str
    program: str
    environment: str
    # What the table in README.md names: packages whose versions are pinned in `environments/`.
    packages: tuple[str, ...]

    @property
    def home(self) -> Path:
        """Where `make clients` installs it; openai-python's is older than the others."""
        return ROOT / ".venv-clients" if self.environment == "openai-python" else INSTALLED / self.environment

    @property
    def command(self) -> Sequence[str]:
        program = str(HERE / "programs" / self.program)
        return (str(NODE), program) if program.endswith(".mjs") else (str(self.home / "bin" / "python"), program)

    @property
    def pins(self) -> dict[str, str]:
        """The versions of `packages`, from the file that pins them."""
        if (lock := ENVIRONMENTS / self.environment / "package-lock.json").exists():
            packages = json.loads(lock.read_text())["packages"]
            return {name: packages[f"node_modules/{name}"]["version"] for name in self.packages}
        lines = (ENVIRONMENTS / f"{self.environment}.txt").read_text().splitlines()
        versions = dict(line.split("==") for line in lines if "==" in line)
        return {name: versions[name] for name in self.packages}


OPENAI = Kind("openai-python", "openai_python.py", "openai-python", ("openai",))
OPENAI_ASYNC = Kind("openai-python, asynchronous", "openai_python_async.py", "openai-python", ("openai",))
OPENAI_NODE = Kind("openai-node", "openai_node.mjs", "openai-node", ("openai",))
AI_SDK = Kind("Vercel AI SDK", "ai_sdk.mjs", "ai-sdk", ("ai", "@ai-sdk/openai-compatible"))
LANGCHAIN = Kind("LangChain", "langchain_chat.py", "langchain", ("langchain-openai",))
LLAMA_INDEX = Kind("LlamaIndex", "llama_index_chat.py", "llama-index", ("llama-index-llms-openai-like",))
KINDS = (OPENAI, OPENAI_ASYNC, OPENAI_NODE, AI_SDK, LANGCHAIN, LLAMA_INDEX)


class Program:
    """A running client program."""

    def __init__(self, kind: Kind) -> None:
        """Start it; skip the test where it is not installed, unless in CI."""
        missing = [path for path in (*map(Path, kind.command), kind.home) if not path.exists()]
        if missing:
            assert not os.environ.get("CI"), f"CI must have {missing[0]}: `make clients`"
            pytest.skip(f"no {missing[0].relative_to(ROOT)}: `make clients` installs the clients")
        self._process = subprocess.Popen(
            kind.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "NODE_HOME": str(kind.home)},
            encoding="utf-8",
        )
        self._turn = asyncio.Lock()

    async def tell(self, story: str, **order: Any) -> dict[str, Any]:
        """Return what a story came to; `raised` names the class of what the client raised."""
        async with self._turn:
            try:
                return await asyncio.to_thread(self._tell, json.dumps({"story": story, **order}))
            except asyncio.CancelledError:
                self._process.kill()
                raise

    def _tell(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the client ended with {self._process.wait()}"
        return dict(json.loads(answer))

    def close(self) -> None:
        """Let it end: there are no more orders."""
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
