"""What each role needs in a cluster: servers, secrets, room, time. The manifests of base/ are made from this table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

#: SHUTDOWN_TIMEOUT_S of every role (settings.env).
SHUTDOWN_TIMEOUT_S = 20
#: The API answers what waits before its closing begins, within as much again; then the kubelet's own delays.
GRACE_S = 2 * SHUTDOWN_TIMEOUT_S + 20


class Server(StrEnum):
    KAFKA = "kafka"
    POSTGRES = "postgres"
    VALKEY = "valkey"
    S3 = "s3"


#: Settings that open a server, each a key of the Secret `vlastream`: the owner's.
CREDENTIALS = {
    Server.POSTGRES: ("DATABASE_URL",),
    Server.VALKEY: ("REDIS_URL",),
    Server.S3: ("S3_ACCESS_KEY", "S3_SECRET_KEY"),
}


#: Of these a role has its own, whose users may do what docs/security.md says.
OWN = ("DATABASE_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY")


def opening(servers: Iterable[Server]) -> list[str]:
    """Settings that open these servers."""
    return [name for server in servers for name in CREDENTIALS.get(server, ())]


def own_key(role: str, setting: str) -> str:
    """Key of the Secret that holds a role's own value of a setting."""
    return f"{role.replace('-', '_')}_{setting}".upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One kind of pod. `about` and `room` become comments."""

    name: str
    #: Target of deploy/Dockerfile.
    image: str
    args: tuple[str, ...]
    servers: tuple[Server, ...]
    cpu: str
    memory: str
    room: str
    about: str
    kind: str = "Deployment"
    #: None: whoever scales it says.
    replicas: int | None = 1
    #: Settings that are the same in every installation.
    environment: dict[str, str] = field(default_factory=dict)
    #: Settings from the Secret, beside those of the servers.
    secrets: tuple[str, ...] = ()
    #: How long the first /readyz may take.
    start_s: int = 120
    port: int = 9100
    #: A new pod before an old one ends, where there is room for it.
    surge: int = 1
    gpus: int = 0

    @property
    def user(self) -> str:
        """Its Kafka user (schemas/access.py)."""
        return "gpu" if self.image == "gpu" else self.name

    @property
    def credentials(self) -> list[tuple[str, str]]:
        """Each setting with its key in the Secret."""
        names = (*opening(self.servers), *self.secrets)
        return [(name, own_key(self.name, name) if name in OWN else name) for name in names]


#: In the order of the flow. GPU workers are an overlay's: one Deployment for each deployment of its cards.
ROLES = (
    Role(
        name="api",
        image="api",
        args=("api",),
        kind="StatefulSet",
        servers=(Server.KAFKA, Server.POSTGRES, Server.VALKEY),
        secrets=("SECRET_KEY", "JWT_SECRET_KEY"),
        environment={"PORT": "8000"},
        port=8000,
        # The HPA's.
        replicas=None,
        cpu="1",
        memory="512Mi",
        room="3.0 ms of CPU a request and 219 MB at most were measured (benchmarks); one process uses about one core",
        about="Numbered pods: each reads the partition of vla.replies.v1 of its own number.",
    ),
    Role(
        name="gate",
        image="gate",
        args=("gate",),
        servers=(Server.KAFKA, Server.VALKEY),
        replicas=2,
        cpu="1",
        memory="512Mi",
        room="9.2 ms of CPU a request and 156 MB at most were measured (benchmarks); one process uses one core",
        about="Not scaled by lag: one that comes or goes moves tables and partitions, and robots wait for that.\n"
        "One for every four partitions of vla.requests.v1, by hand.",
    ),
    Role(
        name="sink-postgres",
        image="sink-postgres",
        args=("sink", "postgres"),
        servers=(Server.KAFKA, Server.POSTGRES),
        replicas=None,
        cpu="500m",
        memory="512Mi",
        room="2522 rows a second and 95 MB at most were measured (benchmarks/results/2026-11-24-sink-rate.md)",
        about="Nobody waits for a row: it is scaled by lag (keda-sinks.yaml).",
    ),
    Role(
        name="sink-parquet",
        image="sink-parquet",
        args=("sink", "parquet"),
        servers=(Server.KAFKA, Server.S3),
        secrets=("ANONYMIZATION_HASH_SALT",),
        cpu="1",
        memory="2Gi",
        room="259 MB with files of 16 MiB were measured; PARQUET_MAX_FILE_BYTES is 128 MiB, for each partition",
        about="Not scaled by lag: what is not flushed yet counts as lag, and a record costs it nearly nothing, or the\n"
        "search for faces: about 0.2 s of CPU (8.3 s for 2 MB of 50 KB frames, 2026-11-24-sink-rate.md).\n"
        "By hand: frames a second of robots whose consent is full x 0.2 s / 0.7. Nobody waits for a file.",
    ),
    Role(
        name="embedder",
        image="embedder",
        args=("embedder",),
        servers=(Server.KAFKA, Server.VALKEY),
        environment={"IMAGE_EMBEDDING_MODEL": "/srv/vlastream/examples/tabletop/vision_tower", "OMP_NUM_THREADS": "1"},
        start_s=300,
        cpu="2",
        memory="3Gi",
        room="MiniLM and a vision tower on the CPU",
        about="Vectors may come late; more of them share the group vla-embedder by hand.",
    ),
    Role(
        name="etl",
        image="etl",
        args=("etl", "serve"),
        servers=(Server.POSTGRES, Server.VALKEY, Server.S3),
        secrets=("ANONYMIZATION_HASH_SALT",),
        cpu="500m",
        memory="4Gi",
        room="DuckDB scans a day of the lake at night",
        about="One: days are worked on under a lock, a second one would wait.",
        surge=0,
    ),
)


def gpu_worker(deployment: str, *, gpus: int, cpu: str, memory: str) -> Role:
    """The pod of one deployment's workers."""
    return Role(
        name=f"gpu-{deployment}",
        image="gpu",
        args=("gpu",),
        servers=(Server.KAFKA,),
        environment={"DEPLOYMENT": deployment, "REQUIRE_GPU": "true" if gpus else "false"},
        replicas=None,
        cpu=cpu,
        memory=memory,
        room="see installation.yaml",
        about="Its number is KEDA's (keda.yaml).",
        # Weights are read and every batch size is warmed up first; compiled shapes take minutes each.
        start_s=900,
        surge=0 if gpus else 1,
        gpus=gpus,
    )
