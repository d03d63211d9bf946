"""The one settings model: everything that a process reads from its environment, validated once at start."""

from __future__ import annotations

import inspect
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.errors import Fatal
from runtime.settings_rules import DEFAULT_DATABASE_URL, DEFAULT_SECRET, general_faults, production_faults
from runtime.stack_file import settings_of
from schemas.cards import valid_name

DEFAULT_STACK_FILE = Path(".vlastream/stack.json")
_REPOSITORY = Path(__file__).resolve().parent.parent
_UNREADABLE = ".env: it cannot be read, it has to be text in UTF-8: {}"
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Settings(BaseSettings):
    """Field names are the environment's names in lower case; `.env` in the working folder is read too."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    # --- where the servers are
    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    database_url: SecretStr = SecretStr(DEFAULT_DATABASE_URL)
    #: What the roles that use Postgres have as their DATABASE_URL, each with a user of its own: from them
    #: `vlastream db upgrade --roles` knows the passwords. Empty: that user's password is left as it is.
    api_database_url: SecretStr = SecretStr("")
    sink_postgres_database_url: SecretStr = SecretStr("")
    etl_database_url: SecretStr = SecretStr("")
    database_pool_size: int = Field(default=5, ge=1, le=200)
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    #: Where limits are counted, a server that evicts nothing. Empty: REDIS_URL, where maxmemory must then be unset.
    rate_limit_redis_url: SecretStr = SecretStr("")
    #: false writes the same lake to DATA_DIR/lake
    enable_s3_storage: bool = True
    #: Empty: AWS
    s3_endpoint: str = ""
    s3_bucket: str = "vla-training-data"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"

    # --- how they are spoken to
    #: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    #: User that the console of the API reads frames and dead letters with, where Kafka has users. Empty: it shows none.
    console_kafka_sasl_username: str = ""
    console_kafka_sasl_password: SecretStr = SecretStr("")
    #: PEM files of the authorities that signed the servers' certificates; empty: those of the system.
    #: Postgres and Redis have theirs in the URL: ?sslmode=verify-full&sslrootcert=FILE and rediss://...?ssl_ca_certs=FILE.
    kafka_ssl_ca_location: str = ""
    s3_ca_bundle: str = ""

    # --- what kind of installation this is
    #: production refuses default secrets, DEBUG, a wildcard in ALLOWED_HOSTS and Kafka without TLS
    environment: Literal["development", "production"] = "development"
    #: Logs at level DEBUG, whatever LOG_LEVEL says.
    debug: bool = False
    #: Lets production talk to Kafka without TLS and a name: where nobody else is in that network.
    allow_plaintext_kafka: bool = False

    # --- who may come in
    #: Host names that the API answers to, comma separated; `*.example.org` takes in what is below, `*` everything.
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("*",)
    #: Origins of the pages that may call the API from a browser, comma separated. Empty: none.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    #: Signs what API processes note about keys in Redis, so that nobody who can write there can make a key.
    secret_key: SecretStr = SecretStr(DEFAULT_SECRET)
    #: Signs the tokens of POST /v1/auth/token (HS256), at least 32 characters. Empty: none are given or taken.
    jwt_secret_key: SecretStr = SecretStr("")
    #: Seconds that a token is valid where nothing is asked for; never longer than an hour.
    jwt_ttl_s: int = Field(default=900, ge=10, le=3600)
    #: Limits of customers and keys are counted and hold. false: everything is let through, usage is still counted.
    enable_rate_limits: bool = True
    #: Seconds that a client has for the head of a request, and again for its body.
    client_timeout_s: float = Field(default=20.0, gt=0, le=300)
    #: Connections of one API process at once, WebSockets among them. Beyond them whoever has sent no request yet makes
    #: way; where there is nobody, the newest is answered 503.
    max_connections: int = Field(default=4096, ge=16, le=1_000_000)

    # --- this process
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    #: Port of /metrics, /livez and /readyz for every role but the API, which serves them on `port`.
    metrics_port: int = Field(default=0, ge=0, le=65535)
    #: Number of this process among those of its role, from 0.
    role_instance: int = Field(default=0, ge=0)
    data_dir: Path = Path(".vlastream/data")
    #: Written by the embedded stack; read for /metrics/federate.
    stack_file: Path = DEFAULT_STACK_FILE
    #: role=url pairs for /metrics/federate where there is no stack file.
    federate_targets: Annotated[tuple[str, ...], NoDecode] = ()
    #: false: /metrics of every role answers 404, and /metrics/federate too.
    enable_prometheus: bool = True
    #: DEBUG, INFO, WARNING or ERROR
    log_level: LogLevel = "INFO"
    #: json or text
    log_format: Literal["json", "text"] = "json"
    #: Base URL of an OTLP/HTTP collector (extra `otel`); empty: no traces.
    otel_exporter_otlp_endpoint: str = ""
    #: Share of requests that are traced. Those with a sampled `traceparent` always are.
    otel_traces_sampler_arg: float = Field(default=1.0, ge=0, le=1)
    #: Of Sentry (extra `sentry`); empty: no error reports.
    sentry_dsn: SecretStr = SecretStr("")
    shutdown_timeout_s: float = Field(default=10.0, gt=0, le=300)

    # --- topology
    cards_dir: Path = _REPOSITORY / "deploy" / "cards"
    #: Fleets that produce to Kafka themselves. A fleet's customer is its own name.
    fleets: Annotated[tuple[str, ...], NoDecode] = ()
    #: Partition counts cannot change once topics exist.
    kafka_partitions: int = Field(default=4, ge=1, le=1024)
    kafka_accepted_partitions: int = Field(default=8, ge=1, le=1024)
    kafka_reply_partitions: int = Field(default=16, ge=1, le=1024)
    kafka_replication_factor: int = Field(default=1, ge=1, le=9)
    kafka_session_timeout_ms: int = Field(default=6000, ge=1000, le=300_000)
    kafka_retention_days: int = Field(default=7, ge=1)

    # --- requests
    default_ttl_ms: int = Field(default=2000, ge=1, le=60_000)
    max_ttl_ms: int = Field(default=60_000, ge=1, le=600_000)
    #: Seconds in which the same observation under another request id is refused. 0: never.
    dedup_window_s: float = Field(default=300, ge=0)
    min_safety_score: float = Field(default=0.7, ge=0, le=1)
    max_body_bytes: int = Field(default=1_000_000, ge=1024)
    #: none, metadata or full
    default_consent_tier: Literal["none", "metadata", "full"] = "none"
    #: Requests of one API process in work at once. One customer gets 8/9 of them at most; beyond its share it is
    #: answered 429, and 503 where there is no room for others.
    inference_queue_max_size: int = Field(default=512, ge=1)
    #: Bytes of bodies that come in and of records that the log does not have yet, of one API process; the
    #: producer's queue is as large. At least four bodies of the largest size. Shared and refused as places are.
    inference_queue_max_bytes: int = Field(default=16 * 1024 * 1024, ge=4096)
    #: WebSocket sessions of one API process.
    stream_max_sessions: int = Field(default=512, ge=4)
    #: Requests of one WebSocket session that may be unanswered.
    stream_max_in_flight: int = Field(default=16, ge=1, le=256)
    #: A WebSocket session that asks nothing and sends no JSON ping for so long is closed.
    stream_idle_timeout_s: float = Field(default=300.0, gt=0)
    #: One WebSocket frame; peers' protocols send pixels uncompressed.
    stream_max_frame_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    #: Partition of the replies topic that an API process reads. Default: its instance number.
    api_reply_partition: int | None = Field(default=None, ge=0)
    #: A key that was revoked is refused after this time at the latest.
    key_cache_ttl_s: float = Field(default=5.0, ge=0)
    #: How long a known key is still honoured while Postgres and Valkey are away.
    key_cache_stale_s: float = Field(default=600.0, ge=0)
    worker_timeout_s: float = Field(default=3.5, gt=0.5)

    # --- GPU consumers
    #: Empty: the first deployment of the default model.
    deployment: str = ""
    #: For the server of a policy that runs elsewhere, sent as `Authorization: Api-Key ...`.
    policy_api_key: SecretStr = SecretStr("")
    #: Precision of the weights in place of the card's. Empty: as the card says.
    model_dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    #: Take weights tensor by tensor to the device rather than whole files into memory first.
    low_cpu_mem_usage: bool = True
    #: The GPU of a single worker, as CUDA numbers them. `gpu --all` gives each worker one of its own.
    gpu_device: int = Field(default=0, ge=0)
    #: Which GPUs there are for this process, as CUDA reads it. None: all of them.
    cuda_visible_devices: str | None = None
    #: End rather than serve a policy with weights on the CPU; `gpu --all` sets it for those that it gives a GPU.
    require_gpu: bool = False
    #: Workers that `gpu --all` runs on this host at most; 0: one a GPU, and one without a GPU.
    inference_max_workers: int = Field(default=0, ge=0)
    #: Threads of a worker that decode and prepare.
    worker_fetch_threads: int = Field(default=1, ge=1)
    torch_threads: int = Field(default=1, ge=1)
    #: Requests in a worker at once; at least four full batches.
    worker_queue_max_size: int = Field(default=128, ge=1)
    policy_timeout_s: float = Field(default=30.0, gt=0)
    enable_gpu_monitoring: bool = True
    #: Seconds between two looks at a GPU.
    gpu_poll_interval: float = Field(default=5.0, gt=0)

    # --- sinks
    sink_flush_interval_s: float = Field(default=0.5, gt=0)
    sink_batch_size: int = Field(default=500, ge=1)
    parquet_flush_interval_s: float = Field(default=10.0, gt=0)
    parquet_max_file_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)

    # --- embeddings
    enable_embeddings: bool = True
    #: A model's name or a folder that holds it: from the package of its weights or a local cache, never downloaded
    #: unasked.
    instruction_embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    #: Where there are no weights the embedder says so once, and embeds instructions alone.
    image_embedding_model: str = "openai/clip-vit-base-patch32"
    embedding_batch_size: int = Field(default=32, ge=1, le=1024)
    #: Seconds that an embedding is kept in Redis; 0: none is.
    embedding_cache_ttl: int = Field(default=300, ge=0)

    # --- what may be kept, and for how long
    #: What is taken out before anything comes to rest; a customer may ask for more, never for less.
    anonymization_level: Literal["none", "partial", "full"] = "full"
    #: Key of the hashes that stand for ids in the lake. Change it before the first row is written, and never after.
    anonymization_hash_salt: SecretStr = SecretStr(DEFAULT_SECRET)
    #: Days. -1: for ever.
    raw_data_retention_days: int = Field(default=90, ge=-1)
    aggregated_data_retention_days: int = Field(default=365, ge=-1)
    safety_data_retention_days: int = Field(default=-1, ge=-1)

    # --- ETL
    etl_enabled: bool = True
    #: Hours of the UTC day.
    etl_schedule_hour: int = Field(default=2, ge=0, le=23)
    retention_schedule_hour: int = Field(default=3, ge=0, le=23)
    etl_batch_size: int = Field(default=1000, ge=1)

    @field_validator("fleets", "federate_targets", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("fleets")
    @classmethod
    def _fleets_fit_into_topic_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not valid_name(name):
                raise ValueError(f"fleet {name!r}: use a-z, 0-9 and '-'")
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        faults = [*general_faults(self), *(production_faults(self) if self.environment == "production" else ())]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="after")
    def _sasl_has_a_user(self) -> Self:
        with_sasl = self.kafka_security_protocol.startswith("SASL_")
        if with_sasl and not (self.kafka_sasl_username and self.kafka_sasl_password.get_secret_value()):
            raise ValueError("KAFKA_SECURITY_PROTOCOL wants KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
        return self

    @property
    def effective_log_level(self) -> LogLevel:
        return "DEBUG" if self.debug else self.log_level

    @cached_property
    def sqlalchemy_url(self) -> str:
        """database_url with the psycopg driver named, as SQLAlchemy and alembic want it."""
        url = self.database_url.get_secret_value()
        return "postgresql+psycopg://" + url.split("://", 1)[1]


class _StackFileSource(PydanticBaseSettingsSource):
    """Where the servers of a running embedded stack are: the last word, for commands typed beside it."""

    def __call__(self) -> dict[str, Any]:
        path = Path(self.current_state.get("stack_file") or DEFAULT_STACK_FILE)
        try:
            return settings_of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError):
            return {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False


class _SettingsBesideStack(Settings):
    """What neither environment nor `.env` names is taken from the embedded stack that runs in this folder."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, _StackFileSource(settings_cls)


def load_settings() -> Settings:
    """Settings of this process. Raises Fatal with one line per problem, naming the variable."""
    try:
        return _SettingsBesideStack()
    except ValidationError as error:
        raise Fatal("the settings cannot be used:\n  " + "\n  ".join(_lines(error))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"the settings cannot be used:\n  {_UNREADABLE.format(error)}") from error


def _lines(error: ValidationError) -> list[str]:
    """One line a problem. Values are not repeated: one of them may be a secret."""
    lines = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(item["loc"][0]).upper() if item["loc"] else ""
        said = item["msg"].removeprefix("Value error, ")
        lines += [f"{name}: {said}"] if name else said.splitlines()
    return lines


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting as its declaration has it: the heading that it stands under and the comment above it."""

    name: str
    group: str
    comment: str


def declared_settings() -> list[Declared]:
    """Every setting in the order of the model, with what the comments in this file say of it."""
    group, comment, found = "", [], []
    for line in inspect.getsource(Settings).splitlines():
        text = line.strip()
        if match := re.fullmatch(r"# --- (.+)", text):
            group = match[1]
        elif text.startswith("#: "):
            comment.append(text.removeprefix("#: "))
        else:
            name = text.partition(":")[0]
            if name in Settings.model_fields:
                found.append(Declared(name, group, " ".join(comment)))
            comment = []
    return found


def repository() -> Path:
    """The folder that holds the packages: relative defaults begin there."""
    return _REPOSITORY


def given_names(env_file: Path = Path(".env")) -> tuple[set[str], set[str]]:
    """Names of the variables in this process's environment, and of those in `.env`; none of one that is unreadable."""
    try:
        return set(os.environ), set(dotenv_values(env_file)) if env_file.is_file() else set()
    except (OSError, UnicodeDecodeError):
        return set(os.environ), set()
