"""Who may read and write which topic: the least that each role and each fleet needs, declared once.

`vlastream topics apply --acls` gives the brokers exactly this; docs/security.md shows it. A role's Kafka user has the
role's name, a fleet's user is `fleet.<name>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from schemas.topics import (
    AUDIT,
    CONSENT,
    CONTROL,
    CUSTOMERS,
    EMBEDDER_GROUP,
    EMBEDDINGS,
    EMBODIMENTS,
    EPISODES,
    FEEDBACK,
    FLEETS,
    GATE_APP,
    GATE_CHANGELOG,
    OUTCOMES,
    PARQUET_GROUP,
    POSTGRES_GROUP,
    QUERIES,
    REPLIES,
    REQUESTS,
    RESULTS,
    TRAFFIC,
    WORKERS,
    dead_letter_topic,
    episodes_topic,
    replies_topic,
    requests_topic,
    worker_group,
)

#: Stand for every fleet and every deployment in the table below.
EACH_FLEET = "<fleet>"
EACH_DEPLOYMENT = "<deployment>"
_FLEET_REQUESTS = f"vla.requests.{EACH_FLEET}.v1"
_FLEET_REPLIES = f"vla.replies.{EACH_FLEET}.v1"
_FLEET_EPISODES = f"vla.episodes.{EACH_FLEET}.v1"
_ACCEPTED = f"vla.accepted.{EACH_DEPLOYMENT}.v1"

_FLEET_USER_PREFIX = "fleet."
#: May do everything: set-up, operators' commands. No role runs as it.
ADMIN_USER = "admin"
#: Reads single records of the log and the dead letters for the console's pages, and sends letters again.
CONSOLE_USER = "console"


class Operation(StrEnum):
    READ = "read"
    WRITE = "write"
    #: See that it is there, and its offsets; no record of it.
    DESCRIBE = "describe"


class Resource(StrEnum):
    TOPIC = "topic"
    GROUP = "group"


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One permission of one user. prefix: holds for all groups whose names begin with `name`."""

    user: str
    operation: Operation
    resource: Resource
    name: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class RoleAccess:
    """Topics and consumer groups of one role. Whoever may read or write a topic may see that it is there.

    groups: those that it is a member of. describes: groups of others whose committed offsets it may see, and not
    commit, join or delete; describes_topics: topics that it knows the ends of, and no record.
    """

    role: str
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    describes: tuple[str, ...] = ()
    describes_topics: tuple[str, ...] = ()


def _letters(*topics: str) -> tuple[str, ...]:
    return tuple(map(dead_letter_topic, topics))


_SINK_READS = (OUTCOMES, FEEDBACK, EPISODES, _FLEET_EPISODES)

#: Topics in which a record may die, so that a letter of theirs may be sent again.
_MAY_DIE = (REQUESTS, _FLEET_REQUESTS, RESULTS, _ACCEPTED, *_SINK_READS, EMBEDDINGS, CONSENT, CONTROL, AUDIT)

#: In the order of the flow. `etl` and `export` have no user: they read the lake and Postgres, not Kafka.
ROLES = (
    RoleAccess(
        "api",
        reads=(REPLIES, WORKERS, CONSENT, CONTROL, EMBODIMENTS, TRAFFIC),
        # Its own replies: at start it proves the way there and back.
        writes=(REQUESTS, REPLIES, EPISODES, FEEDBACK, CONSENT, EMBODIMENTS, CONTROL, QUERIES, CUSTOMERS, AUDIT),
        # How far the others are behind: /health, /v1/monitoring/queue and what scales the workers.
        describes=(GATE_APP, worker_group(EACH_DEPLOYMENT), POSTGRES_GROUP, PARQUET_GROUP, EMBEDDER_GROUP),
        describes_topics=(_FLEET_REQUESTS, _ACCEPTED, RESULTS, OUTCOMES, EMBEDDINGS, _FLEET_EPISODES),
    ),
    # Second user of the API's processes: what people look at in the console is not within the robots' path's reach.
    # Operators read dead letters there and send them again, each back to the topic that it died in.
    RoleAccess(CONSOLE_USER, reads=(REQUESTS, _FLEET_REQUESTS, OUTCOMES, *_letters(*_MAY_DIE)), writes=_MAY_DIE),
    RoleAccess(
        "gate",
        reads=(
            REQUESTS,
            _FLEET_REQUESTS,
            RESULTS,
            OUTCOMES,
            GATE_CHANGELOG,
            WORKERS,
            CONTROL,
            CONSENT,
            CUSTOMERS,
            EMBODIMENTS,
            TRAFFIC,
            FLEETS,
        ),
        writes=(
            _ACCEPTED,
            RESULTS,
            REPLIES,
            _FLEET_REPLIES,
            OUTCOMES,
            GATE_CHANGELOG,
            *_letters(REQUESTS, _FLEET_REQUESTS, RESULTS),
        ),
        groups=(GATE_APP,),
    ),
    RoleAccess(
        "gpu",
        reads=(_ACCEPTED,),
        writes=(RESULTS, WORKERS, *_letters(_ACCEPTED)),
        groups=(f"gpu.{EACH_DEPLOYMENT}",),
    ),
    RoleAccess(
        "embedder",
        reads=(_ACCEPTED, QUERIES, CONSENT),
        writes=(EMBEDDINGS, REPLIES, *_letters(_ACCEPTED)),
        groups=("vla-embedder",),
    ),
    RoleAccess(
        "sink-postgres",
        reads=(*_SINK_READS, EMBEDDINGS, CONSENT, CONTROL, AUDIT, FLEETS),
        writes=_letters(*_SINK_READS, EMBEDDINGS, CONSENT, CONTROL, AUDIT),
        groups=("sink-postgres",),
    ),
    RoleAccess(
        "sink-parquet",
        reads=(_ACCEPTED, *_SINK_READS, CONSENT, FLEETS),
        writes=_letters(_ACCEPTED, *_SINK_READS),
        groups=("sink-parquet",),
    ),
)


def fleet_user(fleet: str) -> str:
    """Kafka user of a fleet."""
    return _FLEET_USER_PREFIX + fleet


def is_ours(user: str) -> bool:
    """Whether a Kafka user is a role or a fleet, so that its permissions are ours to give and take."""
    return user.startswith(_FLEET_USER_PREFIX) or user in {access.role for access in ROLES}


def fleet_grants(fleet: str) -> tuple[Grant, ...]:
    """What a fleet's robots may do: ask, tell of episodes, hear their own answers."""
    user = fleet_user(fleet)
    return (
        Grant(user, Operation.WRITE, Resource.TOPIC, requests_topic(fleet)),
        Grant(user, Operation.WRITE, Resource.TOPIC, episodes_topic(fleet)),
        Grant(user, Operation.READ, Resource.TOPIC, replies_topic(fleet)),
        # No name holds a dot, so that no fleet's prefix begins another's.
        Grant(user, Operation.READ, Resource.GROUP, f"{user}.", prefix=True),
    )


def role_grants(fleets: Iterable[str], deployments: Iterable[str]) -> tuple[Grant, ...]:
    """What the roles may do in an installation with these fleets and deployments."""
    fleet_list, deployment_list = list(fleets), list(deployments)

    def each(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            if EACH_FLEET in name:
                yield from (name.replace(EACH_FLEET, fleet) for fleet in fleet_list)
            elif EACH_DEPLOYMENT in name:
                yield from (name.replace(EACH_DEPLOYMENT, deployment) for deployment in deployment_list)
            else:
                yield name

    grants: list[Grant] = []
    for access in ROLES:
        grants += [Grant(access.role, Operation.READ, Resource.TOPIC, topic) for topic in each(access.reads)]
        grants += [Grant(access.role, Operation.WRITE, Resource.TOPIC, topic) for topic in each(access.writes)]
        grants += [Grant(access.role, Operation.READ, Resource.GROUP, group) for group in each(access.groups)]
        grants += [Grant(access.role, Operation.DESCRIBE, Resource.GROUP, group) for group in each(access.describes)]
        seen = each(access.describes_topics)
        grants += [Grant(access.role, Operation.DESCRIBE, Resource.TOPIC, topic) for topic in seen]
    return tuple(dict.fromkeys(grants))


def all_grants(fleets: Iterable[str], deployments: Iterable[str]) -> tuple[Grant, ...]:
    fleet_list = list(fleets)
    return (*role_grants(fleet_list, deployments), *(grant for fleet in fleet_list for grant in fleet_grants(fleet)))


def access_table() -> str:
    """The table of docs/security.md, in Markdown."""
    lines = ["| role | reads | writes | groups | describes |", "|---|---|---|---|---|"]
    own = RoleAccess(
        fleet_user(EACH_FLEET), (_FLEET_REPLIES,), (_FLEET_REQUESTS, _FLEET_EPISODES), (f"fleet.{EACH_FLEET}.*",)
    )
    for access in (*ROLES, own):
        described = (*access.describes, *access.describes_topics)
        columns = (access.reads, access.writes, access.groups, described)
        cells = (", ".join(f"`{name}`" for name in names) or "-" for names in columns)
        lines.append(f"| `{access.role}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
