"""What `deploy/` says in numbers, paths and names is what the code says."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tests.deploy.manifests import (
    BASE,
    COMPONENTS,
    DEPLOY,
    EVERYTHING,
    OVERLAYS,
    ROOT,
    engine,
    environment,
    one,
    program,
    rendered,
    serving_pod,
    sidecar,
    templates,
)
from tests.deploy.pod_security import containers
from tests.monitoring.promql import AWAITED, names_in, served_names
from wings_proxy import __version__
from wings_proxy.config.load import CONFIG_FILE_VARIABLE, load_config
from wings_proxy.config.settings import SETTINGS, Config
from wings_proxy.engines import ENGINES
from wings_proxy.engines.failure_reasons import Reason
from wings_proxy.handover.launch import engine_stub
from wings_proxy.handover.volume import VolumeReason
from wings_proxy.lifecycle.machine import Lifecycle
from wings_proxy.lifecycle.state import Outcome, Rules
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.server.status import Status

README = (DEPLOY / "README.md").read_text("utf-8")
IMAGE = f"ghcr.io/wings-infer/wings-infer:{__version__}"


def config(name: str) -> Config:
    """The sidecar's configuration, from the variables and the file the manifests give it."""
    variables = environment(name)
    if CONFIG_FILE_VARIABLE in variables:
        assert variables[CONFIG_FILE_VARIABLE] == "/etc/wings/config.yaml"
        variables[CONFIG_FILE_VARIABLE] = str(DEPLOY / "components" / "config-file" / "config.yaml")
    return load_config(variables)


def argv(name: str) -> tuple[str, ...]:
    settings = config(name)
    return ENGINES[settings.engine_type].argv(settings)


# The configuration.


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_sidecar_accepts_its_configuration(name: str) -> None:
    """An unknown variable, a time budget that does not fit or a bad value would be an error."""
    known = {setting.env for setting in SETTINGS} | {CONFIG_FILE_VARIABLE}

    assert set(environment(name)) <= known
    assert config(name).model_path


def test_the_reference_configuration_gives_the_reference_argv() -> None:
    assert shlex.join(argv(BASE)) == (
        "python3 -m vllm.entrypoints.openai.api_server --model /models/DeepSeek-R1-Distill-Qwen-1.5B --host 127.0.0.1 "
        "--port 8000 --tensor-parallel-size 1 --max-model-len 8192 --trust-remote-code --max-num-seqs 32"
    )


def test_a_value_that_changes_rolls_the_pods_out() -> None:
    assert (
        one(BASE, "ConfigMap", "wings-infer-config")["metadata"]["name"]
        != (one("overlays/vllm", "ConfigMap", "wings-infer-config")["metadata"]["name"])
    )
    for name in EVERYTHING:
        generated = one(name, "ConfigMap", "wings-infer-config")["metadata"]["name"]
        assert sidecar(name)["envFrom"] == [{"configMapRef": {"name": generated}}]


def test_paths_of_files_are_where_they_are_mounted() -> None:
    for name, setting in (
        ("api-keys", config("components/api-keys").api_keys_file),
        ("config", "/etc/wings/config.yaml"),
    ):
        component = "components/api-keys" if name == "api-keys" else "components/config-file"
        mount = next(mount for mount in sidecar(component)["volumeMounts"] if mount["name"] == name)
        assert mount["mountPath"] == str(Path(setting).parent)
        assert mount["readOnly"] is True
        # A file mounted alone would never change.
        assert "subPath" not in mount
    volume = next(each for each in serving_pod("components/api-keys")["volumes"] if each["name"] == "api-keys")
    # Group-readable, and the pod's group is the sidecar's own.
    assert volume["secret"] == {"secretName": "wings-infer-api-keys", "defaultMode": 0o440}
    assert serving_pod(BASE)["securityContext"]["fsGroup"] == sidecar(BASE)["securityContext"]["runAsGroup"] == 10001


# The engine's container.


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_engine_container_waits_for_our_script_and_becomes_it(name: str) -> None:
    shell, option, script = engine(name)["command"]
    stub = engine_stub(f"{config(name).shared_volume_path}/start_command.sh")

    assert (shell, option) == ("sh", "-c")
    if name == "overlays/multi-node-ray":
        assert script == f"ray start --head --port=6379 --disable-usage-stats || exit 1; {stub}"
    else:
        assert script == stub


def test_the_stub_is_the_readme_s() -> None:
    assert engine_stub("/shared-volume/start_command.sh") in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_engine_sees_its_model_and_has_as_many_gpus_as_it_is_told(name: str) -> None:
    settings, container = config(name), engine(name)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}

    assert mounts["/models"]["readOnly"] is True
    assert settings.model_path.startswith("/models/")
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (None if settings.engine_type == "llamacpp" else str(settings.tp_size))
    assert container["resources"]["requests"].get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_label_for_gateways_names_the_engine(name: str) -> None:
    by_role = templates(name)
    labels = by_role.get("leader", by_role.get("pod", {}))["metadata"]["labels"]
    engine_type = config(name).engine_type

    assert labels.get("llm-d.ai/engine-type") == (engine_type if engine_type in ("vllm", "sglang") else None)


def test_the_workers_of_a_group_run_what_their_leader_runs() -> None:
    """What shapes the model is the same; the worker has its rank, and opens no port for clients."""
    name = "overlays/multi-node"
    worker = templates(name)["worker"]["spec"]["containers"][0]
    variables = environment(name) | {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"} | {"MAX_NUM_SEQS": "128"}
    variables["LWS_LEADER_ADDRESS"] = "wings-infer-0.wings-infer.default"
    line = re.search(r"^vllm serve (.*?) &$", worker["command"][2].replace("\\\n", " "), re.MULTILINE)
    assert line is not None
    words = shlex.split(re.sub(r"\$(\w+)", lambda match: variables[match[1]], line[1]))

    leader = list(argv(name))[3:]
    assert leader.pop(leader.index("--model")) == "--model"
    assert " ".join(words) == shlex.join(leader).replace("--node-rank 0", "--node-rank 1") + " --headless"
    assert worker["image"] == engine(name)["image"]
    assert worker["resources"] == engine(name)["resources"]
    assert worker["envFrom"] == sidecar(name)["envFrom"]


def test_a_group_s_leader_is_the_base_s_pod() -> None:
    def without(container: dict[str, Any], *names: str) -> dict[str, Any]:
        return {key: value for key, value in container.items() if key not in names}

    name = "overlays/multi-node"
    assert without(sidecar(name), "env", "envFrom") == without(sidecar(BASE), "envFrom")
    assert without(engine(name), "resources") == without(engine(BASE), "resources", "env")
    assert without(serving_pod(name), "containers", "volumes") == without(serving_pod(BASE), "containers", "volumes")
    assert templates(name)["leader"]["metadata"]["labels"] == templates(BASE)["pod"]["metadata"]["labels"]


# Ports and paths.


@pytest.mark.parametrize("name", EVERYTHING)
def test_everybody_knows_our_port(name: str) -> None:
    port = config(name).port
    ports = [each["containerPort"] for each in sidecar(name)["ports"]]
    for container in (sidecar(name), engine(name)):
        ports += [container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")]
    for resource in rendered(name):
        match resource["kind"]:
            case "Service":
                # Numbers: "9000" would pass the schemas, and not the API server.
                ports += [each[end] for each in resource["spec"]["ports"] for end in ("port", "targetPort")]
            case "NetworkPolicy":
                ports += [each["port"] for rule in resource["spec"]["ingress"] for each in rule["ports"]]
            case "InferencePool":
                ports += [each["number"] for each in resource["spec"]["targetPorts"]]
            case "PodMonitor":
                names = {each["name"]: each["containerPort"] for each in sidecar(name)["ports"]}
                ports += [names[each["port"]] for each in resource["spec"]["podMetricsEndpoints"]]
            case _:
                pass
    assert len(ports) >= 6
    assert set(ports) == {port}


def own_paths() -> set[str]:
    rules = Rules(3, 1, 300, 5, 60, 120, None)
    snapshot = Lifecycle(rules, 0.0).snapshot
    status = Status(rules=rules, snapshot=lambda: snapshot, came_round_at=lambda: 0.0, clock=lambda: 0.0)
    application = web.Application()
    status.add_routes(application.router)
    return {route.resource.canonical for route in application.router.routes() if route.resource}


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_probe_asks_the_endpoint_that_was_made_for_it(name: str) -> None:
    asked = {
        (container["name"] == "wings-infer", probe): container[probe]["httpGet"]["path"]
        for container in (sidecar(name), engine(name))
        for probe in container
        if probe.endswith("Probe")
    }

    assert asked == {
        (True, "startupProbe"): "/startupz",
        (True, "livenessProbe"): "/livez",
        (True, "readinessProbe"): "/readyz",
        (False, "livenessProbe"): "/livez/engine",
    }
    assert set(asked.values()) <= own_paths()


# Time.


def patience(probe: dict[str, Any]) -> int:
    """Seconds of failures before the kubelet acts."""
    seconds: int = probe["periodSeconds"] * probe["failureThreshold"]
    return seconds


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_pod_s_grace_covers_the_script_s_wait_and_the_engine_s_stop(name: str) -> None:
    settings = config(name)
    for template in templates(name).values():
        grace = template["spec"]["terminationGracePeriodSeconds"]
        assert grace == settings.grace_period_seconds
        assert grace >= settings.hold_bound_seconds + settings.engine_stop_seconds + 5


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_sidecar_that_restarts_costs_no_engine_its_life(name: str) -> None:
    liveness = sidecar(name)["livenessProbe"]
    hung, ended = patience(liveness), liveness["terminationGracePeriodSeconds"]
    backed_off, started = 40, 5  # the third restart's, and ten times what it takes to start

    assert patience(engine(name)["livenessProbe"]) >= hung + ended + backed_off + started


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_engine_beyond_hope_has_its_time_to_stop_and_no_more(name: str) -> None:
    grace = engine(name)["livenessProbe"]["terminationGracePeriodSeconds"]

    assert config(name).engine_stop_seconds < grace < serving_pod(name)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_probe_waits_longer_than_it_pauses_unless_it_is_the_start(name: str) -> None:
    for container in (sidecar(name), engine(name)):
        for probe in ("livenessProbe", "readinessProbe"):
            if probe in container:
                assert container[probe]["timeoutSeconds"] <= container[probe]["periodSeconds"]


def test_the_page_counts_with_the_numbers_of_the_code_and_the_manifests() -> None:
    settings, probe = config(BASE), engine(BASE)["livenessProbe"]
    bound, stop = settings.hold_bound_seconds, settings.engine_stop_seconds

    assert f"{bound:g} + {stop:g} + 5 = {bound + stop + 5:g} s" in README
    assert f"{probe['failureThreshold']} × {probe['periodSeconds']} = {patience(probe)} s" in README
    lost = settings.engine_kill_seconds + patience(probe)
    assert f"{settings.engine_kill_seconds:g} + {patience(probe)} = {lost:g} s" in README


# Images.


@pytest.mark.parametrize("name", EVERYTHING)
def test_images_have_exact_tags(name: str) -> None:
    for template in templates(name).values():
        for container in containers(template["spec"]):
            image, _, tag = container["image"].rpartition(":")
            assert image
            assert re.search(r"\d", tag), f"{container['image']}: latest is no version"
            assert template["metadata"]["labels"]["app.kubernetes.io/version"] == __version__
    assert sidecar(name)["image"] == IMAGE


def test_an_image_has_the_same_tag_everywhere() -> None:
    texts = [path.read_text("utf-8") for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".md")]
    texts.append((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    tags: dict[str, set[str]] = {}
    for text in texts:
        for image, tag in re.findall(
            r"(vllm/vllm-openai|lmsysorg/sglang|ghcr\.io/ggml-org/llama\.cpp|ghcr\.io/wings-infer/wings-infer):([\w.-]+)",
            text,
        ):
            tags.setdefault(image, set()).add(tag)

    assert tags == {
        "vllm/vllm-openai": {"v0.32.0"},
        "lmsysorg/sglang": {"v0.5.23"},
        "ghcr.io/ggml-org/llama.cpp": {"server-b11515"},
        "ghcr.io/wings-infer/wings-infer": {__version__},
    }


# Metrics.


def test_autoscalers_and_pages_name_metrics_there_are() -> None:
    texts = [path.read_text("utf-8") for path in (DEPLOY / "components").rglob("*.yaml")] + [README]
    named = set().union(*map(names_in, texts))

    assert "wings_engine_requests_running" in named
    assert named - served_names() <= AWAITED


@pytest.mark.parametrize("name", ["components/autoscaling/hpa", "components/autoscaling/keda"])
def test_a_pod_is_added_before_the_last_one_is_full(name: str) -> None:
    autoscaler = next(r for r in rendered(name) if r["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"))
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == one(name, "Deployment")["metadata"]["name"]
    thresholds = re.findall(r"(?:averageValue|threshold): '?(\d+)'?$", yaml.safe_dump(autoscaler), re.MULTILINE)

    assert thresholds
    assert max(map(int, thresholds)) < config(name).max_num_seqs


# The page.


def test_the_migration_begins_with_what_would_kill_the_pod() -> None:
    _, _, section = README.partition("## Coming from the reference deployment")
    rows = [line for line in section.splitlines() if line.startswith("|")]

    assert "liveness" in rows[2]
    assert "`/health`" in rows[2]
    assert "`/livez`" in rows[2]


def test_the_page_names_every_overlay_and_component() -> None:
    for name in (*OVERLAYS, *COMPONENTS):
        assert f"`{name}`" in README, name


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (DEPLOY / target).exists(), target


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of every table of a section, heads and lines left out."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def reasons_of_the_machine() -> set[str]:
    """Return every text that the state machine gives as a reason: the third argument of `_fire`, or one named so."""
    tree = ast.parse((ROOT / "wings_proxy" / "lifecycle" / "machine.py").read_text("utf-8"))
    given: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            if ast.unparse(node.func) == "self._fire":
                given.append(node.args[2])
            if ast.unparse(node.func) == "Snapshot":
                given += node.args[2:3]
        elif isinstance(node, ast.Assign):
            names = [ast.unparse(target) for target in node.targets]
            if names in (["reason"], ["(reason, detail)"], ["reason, detail"]):
                given.append(node.value.elts[0] if isinstance(node.value, ast.Tuple) else node.value)
    texts = (leaf for value in given for leaf in ast.walk(value) if isinstance(leaf, ast.Constant))
    # What is left of f"probe_{outcome}" is no reason by itself.
    return {str(leaf.value) for leaf in texts} - {"", "probe_"}


def test_it_has_a_row_for_each_reason_there_is_and_no_other() -> None:
    _, _, section = README.partition("## When something is wrong")
    tables, _, _ = section.partition("What clients get")
    explained = [reason for row in rows_of(tables) for reason in re.findall(r"`(\w+)`", row[1])]
    probes = {f"probe_{outcome}" for outcome in Outcome} - {"probe_healthy"}

    assert len(explained) == len(set(explained))
    assert set(explained) == reasons_of_the_machine() | probes | set(VolumeReason) | set(Reason)
    # The way the machine's source is read finds what is there today.
    assert {"not_published", "engine_not_started", "loading", "foreign_server", "stalled"} <= reasons_of_the_machine()


def test_it_has_a_row_for_each_code_of_our_own_errors() -> None:
    _, _, section = README.partition("What clients get")
    table, _, _ = section.partition("| what you see |")
    assert {code for row in rows_of(table) for code in re.findall(r"`(\w+)`", row[0])} - {"code"} == set(ErrorCode)


# Its commands.


def blocks(page: str) -> list[tuple[str, str]]:
    """Return each block of commands with the paragraph in front of it."""
    parts = page.split("\n```sh\n")
    before = (part.rstrip("\n").rpartition("\n\n")[2] for part in parts)
    return [(paragraph, part.partition("```\n")[0]) for paragraph, part in zip(before, parts[1:], strict=False)]


def test_commands_that_need_what_the_tests_lack_are_marked() -> None:
    for paragraph, commands in blocks(README):
        needs = re.search(r"^(kind|docker|hf|curl|kubectl(?! kustomize)) ", commands, re.MULTILINE)
        assert bool(needs) == ("not run" in paragraph.lower()), commands


def test_what_is_yours_is_built_as_the_page_says(tmp_path: Path) -> None:
    (commands,) = (commands for _, commands in blocks(README) if "kubectl kustomize" in commands)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = f"{Path(program('kubectl')).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env={"PATH": path}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    mine = {resource["kind"]: resource for resource in yaml.safe_load_all(done.stdout)}
    assert mine["ConfigMap"]["data"]["SERVED_MODEL_NAME"] == "deepseek"
    images = [container["image"] for container in mine["Deployment"]["spec"]["template"]["spec"]["containers"]]
    assert f"registry.example.com/wings-infer:{__version__}" in images
    assert load_config(mine["ConfigMap"]["data"]).served_model_name == "deepseek"


def test_the_requests_ask_for_the_model_that_is_served() -> None:
    asked = re.findall(r'"model": "([^"]+)"', "".join(commands for _, commands in blocks(README)))
    assert asked == ["deepseek"]
    assert "the model is called `SmolLM2-135M-Instruct`" in README
    assert environment("overlays/llamacpp")["MODEL_NAME"] == "SmolLM2-135M-Instruct"
