"""The manifests of deploy/kubernetes: valid, as declared elsewhere, and confined."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes import check
from deploy.kubernetes.generate import files
from deploy.kubernetes.installation import FOLDER
from deploy.kubernetes.roles import SHUTDOWN_TIMEOUT_S
from runtime.settings import Settings
from runtime.stack.roles import ROLES
from schemas.access import ADMIN_USER, all_grants
from tests.compose_case import ROOT, compose, required_values, stages
from tests.unit.manifest_case import (
    ALL,
    LASTING,
    NAMES,
    component_of,
    container_of,
    documents,
    environment,
    installation_of,
    of_kind,
    overlay_of,
    pod_of,
    workloads,
)

#: For the definitions of KEDA, Strimzi and the Prometheus operator (deploy/kubernetes/check.py says where they are).
CRDS = ROOT / ".crds"
LIBRARIES = {"OMP_NUM_THREADS"}


# --- made of other files, and valid


@pytest.mark.parametrize(
    ("file", "text"), list(files()), ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_a_generated_file_is_what_its_sources_make(file: Path, text: str) -> None:
    assert file.read_text() == text, "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_every_resource_that_an_overlay_names_is_there_once(name: str) -> None:
    found = [(d["kind"], d["metadata"]["name"]) for d in documents(name)]
    assert len(found) == len(set(found)) > 50
    document = check.kustomization(overlay_of(name))
    for generator in document["configMapGenerator"]:
        for file in (*generator.get("envs", ()), *generator.get("files", ())):
            assert (overlay_of(name) / file).is_file(), file
    for patch in document.get("patches", ()):
        assert (overlay_of(name) / patch["path"]).is_file()
        assert re.fullmatch(patch["target"]["kind"], "Deployment")


@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_own_kinds_fit_its_published_schemas(name: str) -> None:
    assert list(check.faults(documents(name), None)) == []


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    workload = copy.deepcopy(workloads("dev")["gate"])
    workload["spec"]["replcas"] = 3
    assert "replcas" in check.core_fault(workload)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: it has kustomize in it")
@pytest.mark.parametrize("name", NAMES)
def test_what_kustomize_builds_fits_too_and_is_patched_everywhere(name: str) -> None:
    documents = check.built(overlay_of(name))
    assert list(check.faults(documents, None)) == []
    settings = next(
        d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith("vlastream-s")
    )
    ours = [
        d for d in documents if d["kind"] in ("Deployment", "StatefulSet", "Job") and "role" in str(container_of(d))
    ]
    for workload in ours:
        if container_of(workload)["name"] != "role":
            continue
        [reference] = container_of(workload)["envFrom"]
        assert reference["configMapRef"]["name"] == settings["metadata"]["name"]
        mounted = {volume["name"] for volume in pod_of(workload)["spec"]["volumes"]}
        assert ("model-cards" in mounted) == (name == "production")
        image = container_of(workload)["image"]
        assert (":" in image) == (name == "production")


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions in {CRDS.name}/: deploy/kubernetes/check.py says which")
@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_others_fit_their_definitions(name: str) -> None:
    assert list(check.faults(documents(name), check.load_schemas(CRDS))) == []


def test_a_definition_refuses_what_it_does_not_name(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["topic"],
                "properties": {
                    "topic": {"type": "string"},
                    "lag": {"x-kubernetes-int-or-string": True, "type": "string"},
                    "more": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"a": {}}},
                },
            }
        },
    }
    definition = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "keda.sh",
            "names": {"kind": "Thing"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        },
    }
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(definition))
    schemas = check.load_schemas(tmp_path)

    def fault(**spec: Any) -> str:
        thing = {"apiVersion": "keda.sh/v1", "kind": "Thing", "metadata": {"name": "x"}, "spec": spec}
        return check.custom_fault(thing, schemas)

    assert fault(topic="t", lag=5, more={"b": 1}) == ""
    assert "tpic" in fault(topic="t", tpic="t")
    assert "topic" in fault()
    assert "no definition" in check.custom_fault(
        {"apiVersion": "keda.sh/v2", "kind": "Thing", "metadata": {"name": "x"}}, schemas
    )


# --- the roles


@pytest.mark.parametrize("name", NAMES)
def test_every_role_runs_with_its_command_from_its_image(name: str) -> None:
    found = workloads(name)
    services = compose(required_values())["services"]
    targets = stages()
    for role in ROLES:
        ours = [d for d in found.values() if component_of(d) == role.user]
        assert ours, role.name
        for workload in ours:
            container = container_of(workload)
            assert container["args"] == list(role.argv[3:])
            assert container["image"].removeprefix("vlastream-") in targets
            if role.user in services:
                assert container["image"] == services[role.user]["image"]


@pytest.mark.parametrize(("name", "key"), ALL)
def test_the_settings_of_every_process_are_good_enough_for_production(name: str, key: str) -> None:
    given = environment(name, workloads(name)[key])
    assert set(given) <= {field.upper() for field in Settings.model_fields} | LIBRARIES
    values: dict[str, Any] = {field.lower(): value for field, value in given.items()}
    settings = Settings(_env_file=None, **values)
    assert settings.environment == "production"
    assert settings.shutdown_timeout_s == SHUTDOWN_TIMEOUT_S


@pytest.mark.parametrize(("name", "key"), ALL)
def test_a_pod_is_restricted_and_bounded(name: str, key: str) -> None:
    spec = pod_of(workloads(name)[key])["spec"]
    container = container_of(workloads(name)[key])
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == stages()["api"].last(
        "USER"
    )
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("name", "key"), LASTING)
def test_a_role_is_asked_where_it_answers_and_may_finish_what_it_has(name: str, key: str) -> None:
    workload = workloads(name)[key]
    container = container_of(workload)
    given = environment(name, workload)
    port = int(given["PORT"] if component_of(workload) == "api" else given["METRICS_PORT"])
    assert container["ports"][0]["containerPort"] == port
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {probe["port"] for probe in probes.values()} == {port}
    assert pod_of(workload)["spec"]["terminationGracePeriodSeconds"] > 2 * SHUTDOWN_TIMEOUT_S
    budget = of_kind(name, "PodDisruptionBudget")[key]
    assert budget["spec"]["selector"] == workload["spec"]["selector"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= pod_of(workload)["metadata"]["labels"].items()
    assert len(pod_of(workload)["spec"]["topologySpreadConstraints"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_who_may_speak_with_a_server_is_who_has_its_credentials(name: str) -> None:
    policies = of_kind(name, "NetworkPolicy")
    secret = {
        "to-postgres": "DATABASE_URL",
        "to-valkey": "REDIS_URL",
        "to-s3": "S3_SECRET_KEY",
        "to-kafka": "KAFKA_SASL_PASSWORD",
    }
    for policy, needed in secret.items():
        [expression] = policies[policy]["spec"]["podSelector"]["matchExpressions"]
        having = {
            component_of(workload)
            for workload in workloads(name).values()
            if any(e["name"] == needed and "valueFrom" in e for e in container_of(workload)["env"])
        }
        assert set(expression["values"]) == having, policy
    everybody = policies["nothing-else"]["spec"]
    assert everybody["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "vlastream"}}
    assert everybody["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_stands_in_a_manifest_and_each_that_is_read_is_in_an_example(name: str) -> None:
    assert not of_kind(name, "Secret")
    examples = [FOLDER / "secrets.example.yaml", *overlay_of(name).glob("secrets.example.yaml")]
    offered = {(d["metadata"]["name"], key) for f in examples for d in check.documents_of(f) for key in d["stringData"]}
    offered |= {(user, "password") for user in of_kind(name, "KafkaUser")}
    read = {
        (e["valueFrom"]["secretKeyRef"]["name"], e["valueFrom"]["secretKeyRef"]["key"])
        for workload in of_kind(name, "Deployment", "StatefulSet", "Job").values()
        for e in container_of(workload).get("env", ())
        if "secretKeyRef" in e.get("valueFrom", {})
    }
    assert read
    assert read <= offered


def test_the_roles_that_alerts_wait_for_are_those_that_pods_are_scraped_as() -> None:
    monitor = of_kind("production", "PodMonitor")["vlastream"]["spec"]
    [chosen] = monitor["selector"]["matchExpressions"]
    names = set()
    for component in chosen["values"]:
        shown = component
        for rule in monitor["podMetricsEndpoints"][0]["relabelings"]:
            if match := re.fullmatch(rule.get("regex", "(.*)"), component):
                shown = match.expand(rule.get("replacement", r"$1").replace("$", "\\"))
        names.add(shown)
    assert names == {role.name for role in ROLES}
    ports = {container_of(w)["ports"][0]["name"] for w in workloads("production").values() if w["kind"] != "Job"}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} == ports
    rules = of_kind("production", "PrometheusRule")["vlastream"]["spec"]["groups"]
    assert rules == yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]


# --- Kafka


@pytest.mark.parametrize("name", NAMES)
def test_strimzi_makes_the_topics_that_are_declared(name: str) -> None:
    found = of_kind(name, "KafkaTopic")
    installation = installation_of(name)
    declared = {topic.name: topic for topic in installation.topics()}
    assert set(found) == set(declared)
    for topic, resource in found.items():
        spec = resource["spec"]
        assert spec["partitions"] == declared[topic].partitions
        assert spec["replicas"] == installation.replication
        assert {key: str(value) for key, value in spec["config"].items()} == declared[topic].broker_config()


@pytest.mark.parametrize("name", NAMES)
def test_strimzi_gives_each_user_exactly_its_permissions(name: str) -> None:
    found = of_kind(name, "KafkaUser")
    installation = installation_of(name)
    wanted = {
        (g.user, str(g.operation), str(g.resource), g.name, "prefix" if g.prefix else "literal")
        for g in all_grants(installation.fleets, installation.deployments)
    }
    given = {
        (user, operation.lower(), acl["resource"]["type"], acl["resource"]["name"], acl["resource"]["patternType"])
        for user, resource in found.items()
        if user not in ("keda", ADMIN_USER)
        for acl in resource["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }
    assert given == wanted
    assert {op for acl in found["keda"]["spec"]["authorization"]["acls"] for op in acl["operations"]} == {"Describe"}
    [kafka] = of_kind(name, "Kafka").values()
    assert kafka["spec"]["kafka"]["authorization"] == {"type": "simple", "superUsers": [ADMIN_USER]}


def test_versions_of_servers_are_those_of_compose() -> None:
    services = compose(required_values())["services"]
    for name in NAMES:
        [kafka] = of_kind(name, "Kafka").values()
        assert services["kafka"]["image"] == f"apache/kafka:{kafka['spec']['kafka']['version']}"
    servers = {d["metadata"]["name"]: container_of(d)["image"] for d in of_kind("dev", "Deployment").values()}
    for server in ("postgres", "valkey", "s3"):
        assert servers[server] == services[server]["image"]
