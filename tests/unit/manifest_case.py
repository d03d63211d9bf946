"""The manifests of deploy/kubernetes as tests read them: resources of each overlay, and what their processes get."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from deploy.kubernetes import check
from deploy.kubernetes.installation import FOLDER, Installation, load_installation, overlays

Document = dict[str, Any]
OVERLAYS = overlays()
NAMES = [overlay.name for overlay in OVERLAYS]


def overlay_of(name: str) -> Path:
    return FOLDER / "overlays" / name


@functools.cache
def installation_of(name: str) -> Installation:
    return load_installation(overlay_of(name))[0]


@functools.cache
def documents(name: str) -> tuple[Document, ...]:
    """Resources of an overlay. Shared: copy what you change."""
    return tuple(check.resources(overlay_of(name)))


def of_kind(name: str, *kinds: str) -> dict[str, Document]:
    return {d["metadata"]["name"]: d for d in documents(name) if d["kind"] in kinds}


def workloads(name: str) -> dict[str, Document]:
    """Everything of ours that runs."""
    found = of_kind(name, "Deployment", "StatefulSet", "Job")
    return {
        key: d for key, d in found.items() if d["metadata"]["labels"].get("app.kubernetes.io/part-of") == "vlastream"
    }


def pod_of(workload: Document) -> Document:
    pod: Document = workload["spec"]["template"]
    return pod


def container_of(workload: Document) -> Document:
    [container] = pod_of(workload)["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def component_of(workload: Document) -> str:
    return str(pod_of(workload)["metadata"]["labels"]["app.kubernetes.io/component"])


ALL = [(name, key) for name in NAMES for key in workloads(name)]
LASTING = [(name, key) for name, key in ALL if workloads(name)[key]["kind"] != "Job"]


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def environment(name: str, workload: Document) -> dict[str, str]:
    """What a process gets, with something in place of each secret."""
    found = env_file(FOLDER / "base" / "settings.env")
    for file in ("partitions.env", "settings.env"):
        found |= env_file(overlay_of(name) / file)
    for entry in container_of(workload)["env"]:
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            url = {"DATABASE_URL": "postgresql://someone:secret@host/vlastream", "REDIS_URL": "rediss://:secret@host/0"}
            found[entry["name"]] = url.get(entry["name"], "0123456789abcdef0123456789abcdef")
        else:
            found[entry["name"]] = "0" if "fieldRef" in source else entry["value"]
    return found
