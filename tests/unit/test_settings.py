"""Settings are read in one place, are all in .env.example, and explain themselves when they are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime.config_commands import NOT_SETTINGS, check, example, show
from runtime.errors import Fatal
from runtime.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"
LINE = re.compile(r"^#? ?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)


def test_the_example_is_what_the_model_says() -> None:
    assert EXAMPLE.read_text() == example(), "run `vlastream config example > .env.example`"
    named = [name for name, _ in LINE.findall(EXAMPLE.read_text())]
    assert named == [name.upper() for name in Settings.model_fields]


def test_every_setting_does_something() -> None:
    packages = ("runtime", "ingest_api", "stream_agents", "gpu_consumers", "sinks")
    code = "".join(
        path.read_text()
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("settings.py", "settings_rules.py", "config_commands.py")
    )
    indirect = {"environment", "log_level", "debug", "allow_plaintext_kafka", "database_url"}
    unused = [name for name in Settings.model_fields if not re.search(rf"\.{name}\b", code) and name not in indirect]
    assert unused == []


def test_every_name_of_the_operators_checklist_is_a_setting_or_explained() -> None:
    checklist = """
        DATABASE_URL REDIS_URL SECRET_KEY JWT_SECRET_KEY ANONYMIZATION_HASH_SALT GPU_DEVICE ENABLE_GPU_MONITORING
        GPU_POLL_INTERVAL ENABLE_EMBEDDINGS INSTRUCTION_EMBEDDING_MODEL IMAGE_EMBEDDING_MODEL EMBEDDING_CACHE_TTL
        ENABLE_S3_STORAGE S3_ENDPOINT S3_BUCKET S3_ACCESS_KEY S3_SECRET_KEY ENABLE_PROMETHEUS SENTRY_DSN
        INFERENCE_MAX_WORKERS INFERENCE_QUEUE_MAX_SIZE DATABASE_POOL_SIZE ENVIRONMENT DEBUG ALLOWED_HOSTS
        ANONYMIZATION_LEVEL RAW_DATA_RETENTION_DAYS AGGREGATED_DATA_RETENTION_DAYS SAFETY_DATA_RETENTION_DAYS
        ETL_ENABLED ETL_SCHEDULE_HOUR ETL_BATCH_SIZE DEFAULT_CONSENT_TIER MODEL_DTYPE LOW_CPU_MEM_USAGE
    """.split()  # noqa: SIM905 - a table is easier to read
    settings = {name.upper() for name in Settings.model_fields}
    assert {name for name in checklist if name not in settings} <= set(NOT_SETTINGS)
    assert "SENTRY_DSN" in settings


SAFE = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "s" * 64,
    "ANONYMIZATION_HASH_SALT": "t" * 64,
    "DATABASE_URL": "postgresql://v:secret@db.example.org/v",
    "ALLOWED_HOSTS": "api.example.org",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_USERNAME": "api",
    "KAFKA_SASL_PASSWORD": "p" * 32,
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A folder and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def checked() -> tuple[int, list[str]]:
    lines: list[str] = []
    return check(lines.append), lines


def test_production_takes_settings_that_are_safe(environment: pytest.MonkeyPatch) -> None:
    for name, value in SAFE.items():
        environment.setenv(name, value)
    assert checked() == (0, ["the settings can be used (production)"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "change-me"),
        ("ANONYMIZATION_HASH_SALT", ""),
        ("DATABASE_URL", "postgresql://vlastream:vlastream@127.0.0.1:5432/vlastream"),
        ("DEBUG", "true"),
        ("ALLOWED_HOSTS", "api.example.org,*"),
        ("CORS_ORIGINS", "*"),
        ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT"),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
        ("JWT_SECRET_KEY", "short"),
        ("SECRET_KEY", " change-me "),
        ("SECRET_KEY", "short"),
        ("ANONYMIZATION_HASH_SALT", "short"),
        ("DATABASE_URL", "postgresql://vlastream:vlastream@db.example.org/vlastream"),
    ],
)
def test_production_refuses_and_names_the_variable(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    for given, safe in SAFE.items():
        environment.setenv(given, safe)
    environment.setenv(name, value)
    status, lines = checked()
    assert status == 1
    assert [line.split()[1] for line in lines] == [f"{name}:"], "one line, and nothing else is wrong"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "mysql://a:hidden@db/x"),
        ("DATABASE_URL", "postgresql://[a:hidden@db/x"),
        ("REDIS_URL", ""),
        ("REDIS_URL", "http://:hidden@cache"),
        ("RATE_LIMIT_REDIS_URL", "cache:6379"),
        ("KAFKA_BOOTSTRAP_SERVERS", " "),
        ("KAFKA_BOOTSTRAP_SERVERS", "http://kafka:9092"),
        ("S3_ENDPOINT", "localhost:9000"),
        ("S3_BUCKET", ""),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("FEDERATE_TARGETS", "http://gate:9100/metrics"),
        ("ALLOWED_HOSTS", ""),
        ("ALLOWED_HOSTS", "https://api.example.org"),
        ("ALLOWED_HOSTS", "api.example.org:8000"),
        ("ALLOWED_HOSTS", "*."),
        ("CORS_ORIGINS", "https://[a"),
        ("DEFAULT_TTL_MS", "60000000"),
        ("MAX_TTL_MS", "100"),
    ],
)
def test_what_no_installation_can_work_with_is_a_problem_with_its_name(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    status, lines = checked()
    assert status == 1
    assert [line.split()[1] for line in lines] == ["DEFAULT_TTL_MS:" if "TTL" in name else f"{name}:"]
    assert "hidden" not in lines[0]


def test_addresses_and_names_that_work_are_no_problem(environment: pytest.MonkeyPatch) -> None:
    good = {
        "DATABASE_URL": "postgres://a:b@db/x?sslmode=verify-full",
        "REDIS_URL": "rediss://:x@cache/0",
        "RATE_LIMIT_REDIS_URL": "unix:///run/valkey.sock",
        "KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092",
        "S3_ENDPOINT": "https://s3.example.org:9000",
        "FEDERATE_TARGETS": "gate=http://gate:9100/metrics",
        "ALLOWED_HOSTS": "api.example.org, *.robots.example.org,10.0.0.7,::1,localhost",
    }
    for name, value in good.items():
        environment.setenv(name, value)
    assert checked() == (0, ["the settings can be used (development)"])


def test_an_env_file_that_is_no_text_is_a_problem_in_one_line(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfeP\x00O\x00")
    status, lines = checked()
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("problem: .env: it cannot be read")


def test_files_that_are_not_there_are_warned_of(environment: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA_SSL_CA_LOCATION", "S3_CA_BUNDLE", "CARDS_DIR"):
        environment.setenv(name, "/nowhere/at/all")
    status, lines = checked()
    assert status == 0
    assert [line.split()[1] for line in lines[:-1]] == ["KAFKA_SSL_CA_LOCATION:", "S3_CA_BUNDLE:", "CARDS_DIR:"]


def test_plaintext_kafka_is_let_through_by_name(environment: pytest.MonkeyPatch) -> None:
    for name, value in {**SAFE, "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "ALLOW_PLAINTEXT_KAFKA": "true"}.items():
        environment.setenv(name, value)
    assert checked()[0] == 0


def test_likely_mistakes_are_warned_of(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("KAFKA_PARTITION", "3")
    environment.setenv("PATH_TO_SOMETHING", "x")
    (tmp_path / ".env").write_text("API_HOST=x\nQUITE_ANOTHER_THING=1\n")
    status, lines = checked()
    assert status == 0
    assert [line.split()[1] for line in lines[:-1]] == ["API_HOST", "KAFKA_PARTITION", "QUITE_ANOTHER_THING"]
    assert "did you mean KAFKA_PARTITIONS?" in lines[1]


def test_what_is_shown_has_no_secret(environment: pytest.MonkeyPatch) -> None:
    secrets = {"SECRET_KEY": "s" * 64, "S3_SECRET_KEY": "k" * 40, "JWT_SECRET_KEY": "j" * 64}
    for name, value in secrets.items():
        environment.setenv(name, value)
    environment.setenv("DATABASE_URL", "postgresql://me:p@ss@db.example.org:5432/v?password=again")
    environment.setenv("REDIS_URL", "redis://:hidden@cache:6379/0")
    lines: list[str] = []
    show(load_settings(), lines.append)
    text = "\n".join(lines)
    assert not any(secret in text for secret in (*secrets.values(), "p@ss", "again", "hidden", "me:"))
    assert "DATABASE_URL=postgresql://***@db.example.org:5432/v" in lines
    assert "REDIS_URL=redis://***@cache:6379/0" in lines


def test_the_example_holds_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / ".env").write_text(EXAMPLE.read_text().replace("CARDS_DIR=deploy", f"CARDS_DIR={ROOT}/deploy"))
    assert load_settings().model_dump() == Settings(_env_file=None).model_dump()


def test_commands_beside_an_embedded_stack_find_its_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".vlastream").mkdir()
    s3 = {"endpoint": "http://s3", "bucket": "b", "access_key": "a", "secret_key": "s"}
    stack = {"kafka": "kafka:1", "database": "postgresql://db", "redis": "redis://r", "s3": s3, "fleets": "north"}
    (tmp_path / ".vlastream" / "stack.json").write_text(json.dumps(stack))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "named:1")
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "named:1", "the environment goes before the stack"
    assert (settings.fleets, settings.s3_endpoint) == (("north",), "http://s3")


def test_a_wrong_setting_is_named_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("MIN_SAFETY_SCORE", "7")
    with pytest.raises(Fatal) as failure:
        load_settings()
    assert "PORT: " in str(failure.value)
    assert "MIN_SAFETY_SCORE: " in str(failure.value)


def test_fleets_are_a_comma_separated_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETS", "north, south,")
    assert load_settings().fleets == ("north", "south")


def test_secrets_do_not_show() -> None:
    assert "vlastream:vlastream" not in repr(Settings(_env_file=None))


def test_the_environment_is_read_in_settings_alone() -> None:
    reading = re.compile(r"os\.environ|os\.getenv")
    allowed = {
        Path("runtime/settings.py"),
        # Hands its own environment on to the processes that it starts.
        Path("schemas/generate.py"),
    }
    packages = ("schemas", "runtime", "ingest_api", "stream_agents", "gpu_consumers", "sinks", "robot_client")
    readers = {
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if reading.search(path.read_text())
    }
    assert {path for path in readers - allowed if path.parts[:2] != ("runtime", "stack")} == set()
