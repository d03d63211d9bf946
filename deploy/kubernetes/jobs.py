"""What runs to its end in a cluster: set-up before the roles, the nightly backup, and operators' commands."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.kubernetes.roles import Server, opening
from schemas.database_access import DATABASE_ROLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One kind of pod that ends. Towards Postgres it is the owner of the tables. `about` becomes comments."""

    name: str
    #: Target of deploy/Dockerfile.
    image: str
    args: tuple[str, ...]
    servers: tuple[Server, ...]
    about: str
    memory: str = "512Mi"
    scratch: str = "100Mi"
    #: Settings from the Secret, beside those of the servers.
    secrets: tuple[str, ...] = ()
    #: Five fields, in UTC. Empty: once, when it is applied.
    schedule: str = ""
    #: Is there to be copied from, and never runs by itself.
    suspended: bool = False
    #: Writes to the claim `backups`.
    backups: bool = False

    @property
    def credentials(self) -> list[tuple[str, str]]:
        """Each setting with its key in the Secret."""
        return [(name, name) for name in (*opening(self.servers), *self.secrets)]


JOBS = (
    Job(
        name="topics-apply",
        image="gate",
        args=("topics", "apply"),
        servers=(Server.KAFKA,),
        about="Strimzi has made topics and permissions from the same declarations: this says so, or what differs.",
    ),
    Job(
        name="db-upgrade",
        image="sink-postgres",
        args=("db", "upgrade", "--roles"),
        servers=(Server.POSTGRES,),
        secrets=tuple(access.url_setting for access in DATABASE_ROLES),
        about="Tables, and the users of the roles with the passwords in their URLs: it needs CREATEROLE.",
    ),
    Job(
        name="backup",
        image="operator",
        args=("backup", "create", "/backups", "--keep", "14", "--hash-models"),
        servers=(Server.POSTGRES, Server.VALKEY),
        schedule="15 1 * * *",
        backups=True,
        about="Postgres and Valkey each night, the newest 14; of weights their hashes (docs/operations.md).\n"
        "The claim is in the cluster: copy it to elsewhere.",
    ),
    Job(
        name="operator",
        image="operator",
        args=("--help",),
        servers=tuple(Server),
        secrets=("ANONYMIZATION_HASH_SALT",),
        # No day is the 31st of February; it is suspended as well.
        schedule="0 0 31 2 *",
        suspended=True,
        backups=True,
        memory="4Gi",
        scratch="2Gi",
        about="To be copied for a command of an operator's: restore, rebuild, books (docs/operations.md).",
    ),
)
