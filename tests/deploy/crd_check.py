"""Checks custom resources against the schemas of their CRDs; run by the Python that has jsonschema.

`crd_check.py SCHEMAS < RESOURCES`: a JSON list on standard input; one line for each thing that is wrong, exit code 1.
An unknown field is wrong, although the API server would drop it silently.
"""

import json
import sys
from pathlib import Path

import jsonschema


def closed(node):
    """The schema with no room for fields it does not name."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and "type" in node and not open_ended:
        node["additionalProperties"] = False
    return node


def main(schemas):
    crds = {(crd["group"], crd["kind"]): crd for crd in (json.loads(f.read_text()) for f in schemas.glob("*.json"))}
    wrong = []
    for resource in json.load(sys.stdin):
        name = f"{resource['kind']} {resource['metadata']['name']}"
        group, _, version = resource["apiVersion"].partition("/")
        crd = crds.get((group, resource["kind"]))
        if crd is None or version not in crd["versions"]:
            wrong.append(f"{name}: no schema of {resource['apiVersion']}")
            continue
        top = set(resource) - {"apiVersion", "kind", "metadata", "spec"}
        wrong += [f"{name}: {key}: unknown" for key in sorted(top)]
        validator = jsonschema.Draft7Validator(closed(crd["versions"][version]["spec"]))
        wrong += [f"{name}: {error.json_path}: {error.message}" for error in validator.iter_errors(resource["spec"])]
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
