"""Cut a CustomResourceDefinition down to what validates: `python -m tests.deploy.trim_crd FILE > tests/data/crds/…`.

Descriptions go, and so do templates of pods: the tests check these against Kubernetes' own schema.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def trimmed(node: Any) -> Any:
    """The schema without its prose."""
    if isinstance(node, list):
        return [trimmed(each) for each in node]
    if not isinstance(node, dict):
        return node
    if "containers" in node.get("properties", {}).get("spec", {}).get("properties", {}):
        return {"type": "object", "x-kubernetes-embedded-pod-template": True}
    return {key: trimmed(value) for key, value in node.items() if not (key == "description" and isinstance(value, str))}


def main(path: Path) -> None:
    """Print the kind, the version it is stored as, and its schema."""
    definition = yaml.safe_load(path.read_text("utf-8"))["spec"]
    versions = {
        version["name"]: {
            key: trimmed(value)
            for key, value in version["schema"]["openAPIV3Schema"]["properties"].items()
            if key == "spec"
        }
        for version in definition["versions"]
        if version["storage"]
    }
    crd = {"group": definition["group"], "kind": definition["names"]["kind"], "versions": versions}
    sys.stdout.write(json.dumps(crd, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
