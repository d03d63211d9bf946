"""What a secure stack adds to a plain one: certificates, users of its Kafka, and what clients need for both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from runtime.errors import Fatal
from runtime.stack.certificates import Certificates
from runtime.stack.layout import Layout, read_json, write_json
from schemas.access import ADMIN_USER, CONSOLE_USER, ROLES, fleet_user
from schemas.database_access import DATABASE_ROLES

#: The broker's own name among the users, for what it asks of itself.
BROKER_USER = "broker"
MECHANISM = "SCRAM-SHA-512"


class StackSecurity:
    """Passwords and certificates are made once and kept across starts, as the data that they protect is."""

    def __init__(self, layout: Layout, fleets: Sequence[str] = ()) -> None:
        self._layout = layout
        self._fleets = tuple(fleets)
        self.certificates = Certificates(layout.data("certificates"))

    def prepare(self) -> None:
        """Make what is not there yet. First called by one thread alone: then it does nothing for the others."""
        for user in self.users:
            self.password(user)
        self.certificates.make(self.keystore_password)

    @cached_property
    def keystore_password(self) -> str:
        return self._layout.secret("keystore")

    def password(self, user: str) -> str:
        """The password of a Kafka user."""
        return self._layout.secret(f"kafka {user}")

    @cached_property
    def database_passwords(self) -> dict[str, str]:
        """Postgres user of a role -> its password."""
        return {access.user: self._layout.secret(f"postgres {access.user}") for access in DATABASE_ROLES}

    def database_user(self, role: str) -> str:
        """The Postgres user of a role, by its Kafka user's name; of one that uses no Postgres: a user that is none."""
        return next((access.user for access in DATABASE_ROLES if access.role == role), "nobody")

    @property
    def users(self) -> tuple[str, ...]:
        """The Kafka users that stand in a new cluster from its first moment on."""
        return (BROKER_USER, ADMIN_USER, *(access.role for access in ROLES), *map(fleet_user, self._fleets))

    def kafka_settings(self, user: str) -> dict[str, str]:
        """Settings of a process that is this Kafka user, by their names in lower case."""
        return {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": MECHANISM,
            "kafka_sasl_username": user,
            "kafka_sasl_password": self.password(user),
            "kafka_ssl_ca_location": str(self.certificates.ca),
            "s3_ca_bundle": str(self.certificates.ca),
        }

    def second_user(self, user: str) -> dict[str, str]:
        """What the API's processes need besides: the user that the console reads the log with."""
        if user != "api":
            return {}
        return {
            "console_kafka_sasl_username": CONSOLE_USER,
            "console_kafka_sasl_password": self.password(CONSOLE_USER),
        }

    def fleet_credentials(self) -> dict[str, dict[str, str]]:
        """Fleet -> its user and password, of those that the stack begins with."""
        users = {fleet: fleet_user(fleet) for fleet in self._fleets}
        return {fleet: {"username": user, "password": self.password(user)} for fleet, user in users.items()}


def check_secure(layout: Layout) -> None:
    """Raises Fatal where the stack that runs in this folder is a plain one, for whoever asked for a secure one."""
    known = read_json(layout.data("mode.json"))
    if known is None or not known["secure"]:
        raise Fatal(f"the stack that runs in {layout.folder} is without TLS and users: start a secure one elsewhere")


def remember_mode(layout: Layout, *, secure: bool) -> bool:
    """Whether this folder's stack is secure: as it was at its first start, since its data are made for that.

    Raises Fatal where a plain one shall become secure.
    """
    file = layout.data("mode.json")
    known = read_json(file)
    if not layout.data("kafka").exists():
        write_json(file, {"secure": secure})
        return secure
    was_secure = known is not None and bool(known["secure"])
    if secure and not was_secure:
        raise Fatal(f"the data in {layout.folder} were made without --secure: remove the folder, or start without it")
    return was_secure
