"""Brings a cluster's permissions to what schemas/access.py declares: `vlastream topics apply --acls`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from runtime.errors import Fatal
from runtime.kafka import build_admin
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from schemas.access import Grant, Operation, Resource, all_grants, is_ours
from schemas.card_files import load_cards

_TIMEOUT_S = 30
_POLL_S = 0.05
_ANY_HOST = "*"
_OPERATIONS = {
    Operation.READ: AclOperation.READ,
    Operation.WRITE: AclOperation.WRITE,
    Operation.DESCRIBE: AclOperation.DESCRIBE,
}
_RESOURCES = {Resource.TOPIC: ResourceType.TOPIC, Resource.GROUP: ResourceType.GROUP}


@dataclass(frozen=True, slots=True)
class AppliedAcls:
    created: int
    deleted: int
    unchanged: int


def apply_acls(settings: Settings, fleets: Iterable[str]) -> AppliedAcls:
    """Give roles and these fleets what is declared, and take away whatever else they were given.

    Other users' permissions are left alone. Raises Fatal where the cluster has no authorizer or does not let us.
    """
    admin = build_admin(settings)
    cards = load_cards(settings.cards_dir)
    wanted = {_binding(grant) for grant in all_grants(fleets, [card.deployment for card in cards.models])}
    found = {binding for binding in _described(admin, _everything()) if is_ours(_user(binding))}
    create(admin, wanted - found)
    surplus = found - wanted
    delete(admin, [_filter_of(binding) for binding in surplus])
    return AppliedAcls(len(wanted - found), len(surplus), len(wanted & found))


def grant_all(admin: AdminClient, grants: Iterable[Grant]) -> None:
    """Add these permissions; those that are there stay. Raises Fatal."""
    create(admin, {_binding(grant) for grant in grants})


def revoke_all_of(admin: AdminClient, user: str) -> None:
    """Take every permission from a user. Raises Fatal."""
    delete(admin, [_everything(principal=f"User:{user}")])


def create(admin: AdminClient, bindings: Iterable[AclBinding]) -> None:
    """Add these, and wait until the broker that is asked goes by them: it hears of them behind the controller."""
    chosen = list(bindings)
    if not chosen:
        return
    for created in admin.create_acls(chosen).values():
        _settled(created)
    deadline = Deadline(_TIMEOUT_S)
    while not set(chosen) <= set(_described(admin, _everything())):
        if deadline.passed:
            raise Fatal("Kafka took the permissions and does not show them: say it again")
        time.sleep(_POLL_S)


def delete(admin: AdminClient, filters: Iterable[AclBindingFilter]) -> None:
    chosen = list(filters)
    if chosen:
        for deleted in admin.delete_acls(chosen).values():
            _settled(deleted)


def _described(admin: AdminClient, chosen: AclBindingFilter) -> list[AclBinding]:
    found: list[AclBinding] = _settled(admin.describe_acls(chosen))
    return found


def _settled(future: object) -> list[AclBinding]:
    try:
        return future.result(timeout=_TIMEOUT_S)  # type: ignore[attr-defined, no-any-return] # a concurrent Future
    except KafkaException as error:
        reason: KafkaError = error.args[0]
        if reason.code() == KafkaError.SECURITY_DISABLED:
            raise Fatal(
                "this Kafka has no authorizer, so everybody may do everything: set authorizer.class.name on its "
                "brokers, or start the embedded stack with `vlastream up --secure`"
            ) from error
        raise Fatal(f"Kafka does not let us change permissions: {reason.str()}") from error


def _binding(grant: Grant) -> AclBinding:
    return AclBinding(
        _RESOURCES[grant.resource],
        grant.name,
        ResourcePatternType.PREFIXED if grant.prefix else ResourcePatternType.LITERAL,
        f"User:{grant.user}",
        _ANY_HOST,
        _OPERATIONS[grant.operation],
        AclPermissionType.ALLOW,
    )


def _everything(principal: str | None = None) -> AclBindingFilter:
    # None stands for any; the stub says otherwise.
    anything: Any = None
    chosen: Any = principal
    return AclBindingFilter(
        ResourceType.ANY,
        anything,
        ResourcePatternType.ANY,
        chosen,
        anything,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )


def _filter_of(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


def _user(binding: AclBinding) -> str:
    return str(binding.principal).removeprefix("User:")
