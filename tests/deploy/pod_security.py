"""The Pod Security Standards, as far as pods like ours can break them.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, policy version 1.34. Not covered: Windows, SELinux
types, AppArmor and sysctls, which `deploy/` does not set (a test says so).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_RESTRICTED_VOLUMES: Final = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_BASELINE_CAPABILITIES: Final = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
_SECCOMP: Final = {"RuntimeDefault", "Localhost"}
NOT_COVERED: Final = {"seLinuxOptions", "appArmorProfile", "sysctls", "windowsOptions", "procMount"}


def containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every container of a pod's spec, those that start first too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def broken_by_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    """What of the restricted standard the pod breaks beside its containers."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name}: true"
    for volume in pod.get("volumes", ()):
        for kind in set(volume) - {"name"} - _RESTRICTED_VOLUMES:
            yield f"volume {volume['name']}: {kind}"


def broken_by_container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """What of the restricted standard this container of the pod breaks."""
    of_pod, own = pod.get("securityContext", {}), container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield "privileged: true"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in capabilities.get("drop", ()):
        yield "capabilities: ALL is not dropped"
    for name in set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        baseline = "" if name in _BASELINE_CAPABILITIES else ", not even in the baseline standard"
        yield f"capabilities: {name} is added{baseline}"
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", of_pod.get("runAsUser")) == 0:
        yield "runAsUser: 0"
    if own.get("seccompProfile", of_pod.get("seccompProfile", {})).get("type") not in _SECCOMP:
        yield "seccompProfile is not RuntimeDefault"
    for port in container.get("ports", ()):
        if port.get("hostPort"):
            yield f"hostPort: {port['hostPort']}"


def broken(pod: Mapping[str, Any]) -> list[str]:
    """Everything of the restricted standard that a pod's spec breaks."""
    of_containers = (
        f"{container['name']}: {what}" for container in containers(pod) for what in broken_by_container(pod, container)
    )
    return [*broken_by_pod(pod), *of_containers]
