"""Every manifest of `deploy/` builds, and is what the API servers it is meant for would take."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import pod_security
from tests.deploy.manifests import (
    BASE,
    COMPONENTS,
    DEPLOY,
    EVERYTHING,
    OVERLAYS,
    ROOT,
    engine,
    one,
    program,
    rendered,
    run,
    serving_pod,
    sidecar,
    templates,
    together,
)

SCHEMAS = ROOT / "tests" / "data" / "crds"
KUBERNETES = [f"1.{minor}" for minor in range(29, 38)]
# Groups that Kubernetes itself serves.
BUILT_IN = {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}
NAMES = ["api-keys", "autoscaling", "gateway", "high-availability", "monitoring", "native-sidecar", "network-policy"]


def test_what_the_design_promises_is_there() -> None:
    assert {"overlays/vllm", "overlays/sglang", "overlays/multi-node"} <= set(OVERLAYS)
    assert [name for name in NAMES if not (DEPLOY / "components" / name).is_dir()] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_it_builds(name: str) -> None:
    assert rendered(name)


def test_the_builder_is_one_that_knows_components_and_labels() -> None:
    version = json.loads(run(program("kubectl"), "version", "--client", "-o", "json"))["clientVersion"]

    assert (int(version["major"]), int(re.sub(r"\D", "", version["minor"]))) >= (1, 27)


def test_the_base_needs_no_crd() -> None:
    assert {resource["apiVersion"] for resource in rendered(BASE)} <= BUILT_IN


def as_pods(name: str) -> list[dict[str, Any]]:
    """The pod templates of custom resources, which their CRDs describe no better than Kubernetes does."""
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role} | template["metadata"], "spec": template["spec"]}
        for role, template in templates(name).items()
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(each, marks=[] if each in (KUBERNETES[0], KUBERNETES[-1]) else pytest.mark.slow)
        for each in KUBERNETES
    ],
)
def test_a_version_of_kubernetes_takes_them(version: str, tmp_path: Path) -> None:
    """Each once, in one file: the checker takes a second to start."""
    documents = [each for name in EVERYTHING for each in rendered(name) if each["apiVersion"] in BUILT_IN]
    documents += [pod for name in EVERYTHING for pod in as_pods(name)]
    different = {json.dumps(each, sort_keys=True): each for each in documents}
    (tmp_path / "all.yaml").write_text(yaml.dump_all(different.values(), Dumper=yaml.CSafeDumper), "utf-8")

    run(program("kubernetes-validate"), "--strict", "--quiet", "-k", version, tmp_path / "all.yaml")


def test_the_checker_of_versions_finds_what_is_wrong(tmp_path: Path) -> None:
    pod = as_pods(BASE)[0]
    pod["spec"]["containers"][0]["terminationGracePeriod"] = 30
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod), "utf-8")

    with pytest.raises(AssertionError, match="terminationGracePeriod"):
        run(program("kubernetes-validate"), "--strict", "-k", KUBERNETES[0], tmp_path / "pod.yaml")


def crd_check(resources: list[dict[str, Any]]) -> str:
    python = Path(program("kubernetes-validate")).with_name("python")
    if not python.exists():  # the checker is the system's own
        python = Path(sys.executable)
    return run(python, Path(__file__).with_name("crd_check.py"), SCHEMAS, given=json.dumps(resources))


def custom(name: str) -> list[dict[str, Any]]:
    return [resource for resource in rendered(name) if resource["apiVersion"] not in BUILT_IN]


def test_custom_resources_are_what_their_definitions_ask_for() -> None:
    resources = [resource for name in EVERYTHING for resource in custom(name)]

    assert {resource["kind"] for resource in resources} == {
        "HTTPRoute",
        "InferencePool",
        "LeaderWorkerSet",
        "PodMonitor",
        "PrometheusRule",
        "ScaledObject",
    }
    crd_check(resources)


def test_the_checker_of_custom_resources_finds_what_is_wrong() -> None:
    pool = one("components/gateway", "InferencePool")
    unknown, missing, foreign = json.loads(json.dumps([pool, pool, pool]))
    unknown["spec"]["targetPortNumber"] = 9000
    del missing["spec"]["targetPorts"]
    foreign["apiVersion"] = "inference.networking.x-k8s.io/v1alpha2"

    for resource, complaint in ((unknown, "targetPortNumber"), (missing, "targetPorts"), (foreign, "no schema")):
        with pytest.raises(AssertionError, match=complaint):
            crd_check([resource])


def test_yamllint_has_nothing_to_say() -> None:
    run(program("yamllint"), "--strict", "-c", ROOT / ".yamllint", DEPLOY)


def shell_scripts() -> list[tuple[str, str]]:
    found = {}
    for name in (BASE, *OVERLAYS):
        for role, template in templates(name).items():
            for container in pod_security.containers(template["spec"]):
                if container.get("command", [])[:2] == ["sh", "-c"]:
                    found[container["command"][2]] = f"{name} {role} {container['name']}"
    return [(where, script) for script, where in found.items()]


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = shell_scripts()
    assert len(scripts) == 4, [where for where, _ in scripts]
    beside = Path(sys.executable).with_name("shellcheck")
    for _, script in scripts:
        run(beside if beside.exists() else program("shellcheck"), "--shell=sh", "-", given=script)


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_sidecar_is_begun_first(name: str) -> None:
    """The kubelet pulls images and starts containers in their order: it would wait for the engine's image of 20 GB."""
    pod = serving_pod(name)
    assert [*pod.get("initContainers", ()), *pod["containers"]][0]["name"] == "wings-infer"


# Pod Security.


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_sidecar_meets_the_restricted_standard(name: str) -> None:
    assert list(pod_security.broken_by_container(serving_pod(name), sidecar(name))) == []
    assert sidecar(name)["securityContext"]["readOnlyRootFilesystem"] is True


def test_what_the_base_breaks_is_the_reference_s_host_path_and_the_engine_image_s_root() -> None:
    assert pod_security.broken(serving_pod(BASE)) == [
        "volume model-volume: hostPath",
        "vllm-engine: runAsNonRoot is not true",
    ]


def test_with_a_claim_and_a_user_of_its_own_the_whole_pod_meets_it() -> None:
    assert pod_security.broken(serving_pod("overlays/production")) == []
    assert one("overlays/production", "Namespace")["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
    }


@pytest.mark.parametrize("inside", [False, True], ids=["on top", "inside"])
@pytest.mark.parametrize(
    ("overlay", "own"),
    [
        ("overlays/llamacpp", {"PATH": "/app:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}),
        ("overlays/vllm", {"VLLM_CACHE_ROOT": "/cache/vllm"}),
        ("overlays/sglang", {}),
    ],
)
def test_an_engine_with_variables_of_its_own_keeps_them_and_gets_a_home(
    overlay: str, own: dict[str, str], inside: bool, tmp_path: Path
) -> None:
    claim = [] if overlay == "overlays/sglang" else ["components/pvc"]
    resources = together(overlay, [*claim, "components/restricted"], tmp_path, inside=inside)
    (pod,) = [each["spec"]["template"]["spec"] for each in resources if each["kind"] == "Deployment"]
    assert pod_security.broken(pod) == []
    (container,) = [each for each in pod["containers"] if each["name"] != "wings-infer"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables == {**own, "HOME": "/home/engine", "USER": "engine"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"privileged": True}, "privileged: true"),
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation is not false"),
        ({"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation is not false"),
        ({"capabilities": {}}, "capabilities: ALL is not dropped"),
        ({"capabilities": {"drop": ["ALL"], "add": ["KILL"]}}, "capabilities: KILL is added"),
        (
            {"capabilities": {"drop": ["ALL"], "add": ["BPF"]}},
            "capabilities: BPF is added, not even in the baseline standard",
        ),
        ({"runAsNonRoot": None}, "runAsNonRoot is not true"),
        ({"runAsUser": 0}, "runAsUser: 0"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccompProfile is not RuntimeDefault"),
    ],
)
def test_the_rules_find_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    container = sidecar(BASE)
    container["securityContext"] |= change

    assert list(pod_security.broken_by_container(serving_pod(BASE), container)) == [complaint]


def test_the_rules_find_what_is_wrong_beside_the_containers() -> None:
    pod = serving_pod("overlays/production")
    pod["hostNetwork"] = True
    pod["volumes"].append({"name": "docker", "hostPath": {"path": "/var/run"}})

    assert pod_security.broken(pod) == ["hostNetwork: true", "volume docker: hostPath"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_is_set_that_the_rules_do_not_cover(name: str) -> None:
    for template in templates(name).values():
        contexts = [template["spec"], *pod_security.containers(template["spec"])]
        for context in contexts:
            assert not pod_security.NOT_COVERED & set(context.get("securityContext", {}))


# What holds for every pod we make.


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_pod_has_no_token_and_no_service_links(name: str) -> None:
    for template in templates(name).values():
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["enableServiceLinks"] is False
        assert template["spec"]["serviceAccountName"] == one(name, "ServiceAccount")["metadata"]["name"]
    assert one(name, "ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_secret_lies_in_the_repository(name: str) -> None:
    assert [resource for resource in rendered(name) if resource["kind"] == "Secret"] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_both_see_the_same_volume_in_memory_with_a_limit(name: str) -> None:
    volumes = {volume["name"]: volume for volume in serving_pod(name)["volumes"]}
    for container in (sidecar(name), engine(name)):
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["shared-volume"] == {"name": "shared-volume", "mountPath": "/shared-volume"}
    assert volumes["shared-volume"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    assert volumes["dshm"]["emptyDir"]["medium"] == "Memory"
    assert {"name": "dshm", "mountPath": "/dev/shm"} in engine(name)["volumeMounts"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_selectors_select_the_serving_pods_and_no_worker(name: str) -> None:
    by_role = templates(name)
    serving = by_role.get("leader", by_role.get("pod", {}))["metadata"]["labels"]
    selectors = []
    for resource in rendered(name):
        match resource["kind"]:
            case "Service":
                selectors.append(resource["spec"]["selector"])
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor" | "InferencePool":
                selectors.append(resource["spec"]["selector"]["matchLabels"])
            case "NetworkPolicy":
                selectors.append(resource["spec"]["podSelector"]["matchLabels"])
            case _:
                pass
    assert selectors
    for selector in selectors:
        assert selector == {"app": "wings-infer"}
        assert selector.items() <= serving.items()
        if "worker" in by_role:
            assert not selector.items() <= by_role["worker"]["metadata"]["labels"].items()


def test_the_reference_s_names_are_kept() -> None:
    deployment, service = one(BASE, "Deployment"), one(BASE, "Service")

    assert deployment["metadata"]["name"] == "wings-infer"
    assert [container["name"] for container in deployment["spec"]["template"]["spec"]["containers"]] == [
        "wings-infer",
        "vllm-engine",
    ]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert (service["metadata"]["name"], service["spec"]["type"]) == ("wings-infer-service", "LoadBalancer")
    volumes = {volume["name"]: volume for volume in serving_pod(BASE)["volumes"]}
    assert volumes["model-volume"]["hostPath"]["path"] == "/mnt/models"


def test_a_claim_takes_the_place_of_the_host_path() -> None:
    volumes = {volume["name"]: volume for volume in serving_pod("components/pvc")["volumes"]}

    assert volumes["model-volume"] == {
        "name": "model-volume",
        "persistentVolumeClaim": {"claimName": "wings-infer-models", "readOnly": True},
    }
    assert one("components/pvc", "PersistentVolumeClaim")["metadata"]["name"] == "wings-infer-models"


@pytest.mark.parametrize("name", ["components/native-sidecar", "overlays/production"])
def test_a_native_sidecar_is_the_same_container_and_starts_before_the_engine(name: str) -> None:
    pod = serving_pod(name)

    assert [container["name"] for container in pod["initContainers"]] == ["wings-infer"]
    assert [container["name"] for container in pod["containers"]] == ["vllm-engine"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always"
    # Only the start-up probe stands between the script and the engine: it must not wait for the engine.
    assert pod["initContainers"][0]["startupProbe"]["httpGet"]["path"] == "/startupz"


def test_an_autoscaler_is_alone_with_the_number_of_replicas() -> None:
    for name in COMPONENTS:
        if name.startswith("components/autoscaling/"):
            assert "replicas" not in one(name, "Deployment")["spec"]
    assert "replicas" not in one("overlays/production", "Deployment")["spec"]
