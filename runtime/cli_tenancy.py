"""`vlastream config`, `keys`, `customers` and `audit`: settings, who may come in, and what was done."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

from runtime.cli_tasks import InOrder, load, run_task


@click.group(cls=InOrder)
def config() -> None:
    """The settings."""


@config.command("example")
def config_example() -> None:
    """Print .env.example: every setting with its default and what it does."""
    click.echo(load("runtime.config_commands:example")(), nl=False)


@config.command("check")
def config_check() -> None:
    """Say in one line what is wrong with each setting, and what to do. Exit status 1 where something is."""
    sys.exit(load("runtime.config_commands:check")(click.echo))


@config.command("show")
def config_show() -> None:
    """Print the settings as this process sees them, secrets masked."""
    run_task("runtime.config_commands:show", click.echo)


@click.group(cls=InOrder)
def keys() -> None:
    """API keys."""


_SCOPES = click.Choice(["inference", "read", "control", "data", "keys", "admin"])
_TIERS = click.Choice(["free", "pro", "enterprise"])
_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@keys.command("create")
@click.option("--email", required=True, help="whose key it is; one address is one customer")
@click.option("--tier", type=_TIERS, help="of the customer from now on  [default: as it is; free for a new one]")
@click.option("--name", default="", help="shown in lists")
@click.option("--scope", "scopes", type=_SCOPES, multiple=True, help="may be repeated  [default: all but admin]")
@click.option("--rate-limit", type=click.IntRange(min=1), help="requests a minute of this key alone")
@click.option("--expires", type=_MOMENT, help="UTC  [default: never]")
def keys_create(
    email: str, tier: str | None, name: str, scopes: tuple[str, ...], rate_limit: int | None, expires: datetime | None
) -> None:
    """Create a key and print it: it is shown this once, only its hash is kept."""
    terms: dict[str, Any] = {"name": name, "rate_limit": rate_limit, "expires_at": _utc(expires)}
    if scopes:
        terms["scopes"] = scopes
    click.echo(run_task("ingest_api.tenancy_commands:create_key", email, tier, **terms))


@keys.command("list")
@click.option("--customer", help="id or e-mail address  [default: everybody]")
def keys_list(customer: str | None) -> None:
    """Show keys by their prefix."""
    for line in run_task("ingest_api.tenancy_commands:list_keys", customer):
        click.echo(line)


@keys.command("change")
@click.argument("key", metavar="PREFIX")
@click.option("--name", help="shown in lists")
@click.option("--scope", "scopes", type=_SCOPES, multiple=True, help="may be repeated; replaces those it has")
@click.option("--rate-limit", type=click.IntRange(min=0), help="requests a minute of this key alone; 0: none")
@click.option("--expires", type=_MOMENT, help="UTC")
def keys_change(
    key: str, name: str | None, scopes: tuple[str, ...], rate_limit: int | None, expires: datetime | None
) -> None:
    """Change what a key may do. It holds within seconds."""
    changes: dict[str, Any] = {"name": name, "scopes": scopes or None, "expires_at": _utc(expires)}
    changes = {field: value for field, value in changes.items() if value is not None}
    if rate_limit is not None:
        changes["rate_limit"] = rate_limit or None
    if not changes:
        raise click.UsageError("name what to change")
    run_task("ingest_api.tenancy_commands:change_key", key, changes)
    click.echo(f"{key} is changed")


@keys.command("rotate")
@click.argument("key", metavar="PREFIX")
@click.option("--grace-s", type=click.FloatRange(min=0), default=0.0, help="seconds that the old key may be used on")
def keys_rotate(key: str, grace_s: float) -> None:
    """Print a new key with the same rights in the place of an old one."""
    click.echo(run_task("ingest_api.tenancy_commands:rotate_key", key, grace_s))


@keys.command("revoke")
@click.argument("prefix")
def keys_revoke(prefix: str) -> None:
    """Revoke the key with this prefix; caches forget it within seconds."""
    if not run_task("ingest_api.tenancy_commands:revoke_key", prefix):
        raise click.ClickException(f"no active key has the prefix {prefix}: see `vlastream keys list`")
    click.echo(f"{prefix} is revoked")


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None


@click.group(cls=InOrder)
def customers() -> None:
    """Customers: tiers, limits and usage. CUSTOMER is an id, an e-mail address, or the name of a fleet."""


@customers.command("list")
def customers_list() -> None:
    """One line a customer, newest first."""
    for line in run_task("ingest_api.tenancy_commands:list_customers"):
        click.echo(line)


@customers.command("show")
@click.argument("customer")
def customers_show(customer: str) -> None:
    """Tier, limits, and what was used."""
    run_task("ingest_api.tenancy_commands:show_customer", customer, say=click.echo)


@customers.command("set-tier")
@click.argument("customer")
@click.argument("tier", type=_TIERS)
def customers_set_tier(customer: str, tier: str) -> None:
    """Give a customer another tier. It holds within seconds."""
    run_task("ingest_api.tenancy_commands:set_tier", customer, tier)
    click.echo(f"{customer} is of tier {tier}")


@customers.command("limits")
@click.argument("customer")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--requests-per-day", type=click.IntRange(min=1), help="of the UTC day")
@click.option("--monthly-quota", type=click.IntRange(min=1), help="requests of a calendar month")
@click.option("--max-robots", type=click.IntRange(min=1), help="distinct robots of a UTC day")
@click.option("--max-payload-bytes", type=click.IntRange(min=1), help="of a request")
@click.option("--reset", is_flag=True, help="what is not named goes back to the tier's")
def customers_limits(customer: str, reset: bool, **limits: int | None) -> None:
    """Give a customer limits of their own, which go before those of the tier."""
    own = {name: value for name, value in limits.items() if value is not None}
    run_task("ingest_api.tenancy_commands:set_limits", customer, own, reset=reset)
    click.echo(f"the limits of {customer} are changed: see `vlastream customers show {customer}`")


@customers.command("suspend")
@click.argument("customer")
def customers_suspend(customer: str) -> None:
    """Take nothing of a customer any more, with whatever key."""
    run_task("ingest_api.tenancy_commands:set_active", customer, False)
    click.echo(f"{customer} is suspended")


@customers.command("readmit")
@click.argument("customer")
def customers_readmit(customer: str) -> None:
    """End a suspension."""
    run_task("ingest_api.tenancy_commands:set_active", customer, True)
    click.echo(f"{customer} is active")


@click.group(cls=InOrder)
def audit() -> None:
    """Who did what, when and from where."""


@audit.command("tail")
@click.option("--follow", is_flag=True, help="go on until Ctrl-C")
@click.option("--customer", help="what concerns this customer: id or e-mail address")
@click.option("--since", default="24h", show_default=True, help="2026-01-31T12:00:00Z, or 90s, 15m, 2h, 3d ago")
def audit_tail(follow: bool, customer: str | None, since: str) -> None:
    """Print what was done, oldest first, from the log itself: keys, customers, consent, stops."""
    run_task(
        "runtime.audit_commands:tail",
        follow=follow,
        customer=customer,
        since=since,
        say=click.echo,
        warn=lambda text: click.echo(text, err=True),
    )
