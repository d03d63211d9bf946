"""`vlastream fleets`: add, list and remove fleets that produce to Kafka themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from runtime.acls import apply_acls, grant_all, revoke_all_of
from runtime.control_commands import login_name
from runtime.errors import Fatal
from runtime.fleets.drain import backlog
from runtime.fleets.registry import registered_fleets
from runtime.kafka import build_admin, build_producer
from runtime.kafka_users import delete_user, new_password, set_password, set_quota
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.topic_admin import apply_topics
from schemas.access import fleet_grants, fleet_user, role_grants
from schemas.card_files import load_cards
from schemas.cards import valid_name
from schemas.messages import Fleet
from schemas.quotas import Quota
from schemas.topics import FLEETS, GATE_APP, dead_letter_topic, episodes_topic, replies_topic, requests_topic

Say = Callable[[str], None]
#: Roles that have fleets' topics, in the order of the flow.
ROLES = ("gate", "sink postgres", "sink parquet")
_LONGEST_NAME = 40
_POLL_S = 0.5


def add_fleet(
    settings: Settings,
    name: str,
    *,
    bytes_per_s: float,
    request_percent: float,
    who: str | None,
    restarted: bool = False,
    say: Say,
) -> None:
    """Make a fleet, or all of it again after an attempt that was cut off; ends with its new password.

    The order is the promise that no answer is lost: the fleet can produce only once every gate reads its topics, since
    of gates that read different topics one may own a robot's requests and another its row. restarted: somebody else
    has seen to that. Raises Fatal.
    """
    _check_name(name)
    registered = registered_fleets(settings)
    listed = name in settings.fleets and name not in registered
    if listed and _runs_beside_stack(settings):
        raise Fatal(f"{name} is the embedded stack's own fleet: its user stands in {settings.stack_file}")
    fleets = tuple(dict.fromkeys((*settings.fleets, *sorted(registered), name)))
    created = apply_topics(settings.model_copy(update={"fleets": fleets})).created
    say(f"topics: {len(created)} created")
    if not listed and name not in registered:
        _record(settings, name, Fleet(name=name, added_at_ms=round(time.time() * 1000), who=who or login_name()))
    secure = settings.kafka_security_protocol.startswith("SASL_")
    admin = build_admin(settings)
    if secure:
        # Restarted gates read the new topics at once; the fleet's own permissions come last.
        grant_all(admin, role_grants(fleets, [card.deployment for card in load_cards(settings.cards_dir).models]))
    if not (listed or restarted or _restart(settings, fleets, say)):
        say(f"then say it again with --restarted: from then on {name} may produce")
        return
    say(f"fleet {name}: requests to {requests_topic(name)}, replies from {replies_topic(name)}")
    if not secure:
        say("this Kafka has no users: whoever reaches it may produce as this fleet, and as any other")
        return
    user, password = fleet_user(name), new_password()
    set_quota(settings, user, Quota(bytes_per_s, request_percent))
    grant_all(admin, fleet_grants(name))
    set_password(admin, user, password)
    say(f"username {user}")
    say(f"password {password}  (shown this once)")


def list_fleets(settings: Settings) -> list[str]:
    """One line a fleet. Raises Unavailable."""
    registered = registered_fleets(settings)
    lines = [f"{name:<24} listed in FLEETS" for name in settings.fleets if name not in registered]
    for name, fleet in sorted(registered.items()):
        when = datetime.fromtimestamp(fleet.added_at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines.append(f"{name:<24} added {when} by {fleet.who}")
    return lines


def remove_fleet(settings: Settings, name: str, *, delete_topics: bool, wait_s: float, say: Say) -> None:
    """Shut a fleet out, let what it has sent be answered, and forget it; its topics stay unless told otherwise.

    Raises Fatal, also where its records are not handled within `wait_s`: then it is shut out, and nothing else is done.
    """
    registered = registered_fleets(settings)
    if name not in registered:
        hint = (
            "take it out of FLEETS and restart the roles" if name in settings.fleets else "see `vlastream fleets list`"
        )
        raise Fatal(f"{name} is no registered fleet: {hint}")
    admin = build_admin(settings)
    secure = settings.kafka_security_protocol.startswith("SASL_")
    if secure:
        delete_user(admin, fleet_user(name))
        revoke_all_of(admin, fleet_user(name))
        set_quota(settings, fleet_user(name), None)
        say(f"user {fleet_user(name)} and its permissions are gone")
    _drain(settings, name, wait_s, say)
    _record(settings, name, None)
    left = tuple(fleet for fleet in dict.fromkeys((*settings.fleets, *sorted(registered))) if fleet != name)
    _restart(settings, left, say)
    if secure:
        apply_acls(settings, left)
    if delete_topics:
        _delete_topics(admin, name, say)


def _check_name(name: str) -> None:
    if not valid_name(name) or len(name) > _LONGEST_NAME:
        raise Fatal(f"fleet {name!r}: use a-z, 0-9 and '-', at most {_LONGEST_NAME} characters")


def _record(settings: Settings, name: str, fleet: Fleet | None) -> None:
    failures: list[str] = []
    producer = build_producer(settings, "vlastream-fleets")
    value = fleet.SerializeToString() if fleet is not None else None
    producer.produce(
        FLEETS, value, key=name, on_delivery=lambda error, _: failures.append(error.str()) if error else None
    )
    if producer.flush(15.0) or failures:
        raise Fatal(f"the fleet could not be registered: {''.join(failures) or 'Kafka does not answer'}")


def _restart(settings: Settings, fleets: Sequence[str], say: Say) -> bool:
    """Whether the roles were restarted here: those of an embedded stack are. Else it is said what to do."""
    if _runs_beside_stack(settings):
        from runtime.stack.rolling import keep_fleets, roll

        keep_fleets(settings.stack_file, fleets)
        roll(settings.stack_file, ROLES, say)
        return True
    say(f"now restart these roles, one process after another: {', '.join(ROLES)}")
    return False


def _runs_beside_stack(settings: Settings) -> bool:
    if not settings.stack_file.exists():
        return False
    # Of the extra `local`, which other installations do not have.
    from runtime.stack.rolling import runs_beside

    return runs_beside(settings.stack_file)


def _drain(settings: Settings, name: str, wait_s: float, say: Say) -> None:
    deadline = Deadline(wait_s)
    topics = [(GATE_APP, requests_topic(name)), ("sink-postgres", episodes_topic(name))]
    while left := sum(backlog(settings, group, [topic]) for group, topic in topics):
        if deadline.passed:
            raise Fatal(f"{left} records of {name} are not handled yet: do gates and sinks run? Then say it again")
        say(f"{left} records of {name} wait to be handled")
        time.sleep(_POLL_S)


def _delete_topics(admin: AdminClient, name: str, say: Say) -> None:
    own = [requests_topic(name), episodes_topic(name)]
    topics = [*own, *map(dead_letter_topic, own), replies_topic(name)]
    for topic, deleted in admin.delete_topics(topics).items():
        try:
            deleted.result(timeout=30)
        except KafkaException as error:
            if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                raise Fatal(f"{topic} could not be deleted: {error.args[0].str()}") from error
    say(f"deleted {', '.join(topics)}")
