"""`vlastream etl`, `retention`, `consent`, `compact`, `export` and `db`: what is kept, and what is made of it."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from runtime.cli_tasks import InOrder, run_role, run_task


@click.group(cls=InOrder)
def etl() -> None:
    """From rows to analytics."""


@etl.command("serve")
def etl_serve() -> None:
    """Role: runs the ETL, retention, compaction and erasures when they are due."""
    run_role("etl", "sinks.etl.server:main")


@etl.command("run")
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), help="UTC day  [default: yesterday]")
@click.option("--pipeline", "pipelines", multiple=True, help="only this one; may be repeated")
@click.option("--dry-run", is_flag=True, help="only say what would be written")
def etl_run(date: datetime | None, pipelines: tuple[str, ...], dry_run: bool) -> None:
    """Compute one day's analytics now. Running it again gives the same result."""
    day = date.date() if date is not None else None
    sys.exit(run_task("sinks.etl.commands:run_etl", day=day, pipelines=pipelines, dry_run=dry_run, say=click.echo))


@click.command()
@click.option("--dry-run", is_flag=True, help="only say what would be deleted")
def retention(dry_run: bool) -> None:
    """Delete what is older than its time, after its copy in the lake is verified."""
    sys.exit(run_task("sinks.retention:run_retention", dry_run=dry_run, say=click.echo))


@click.group(cls=InOrder)
def consent() -> None:
    """What customers allow to be kept. CUSTOMER is an id, an e-mail address, or the name of a fleet."""


@consent.command("get")
@click.argument("customer")
def consent_get(customer: str) -> None:
    """What holds for a customer now."""
    run_task("runtime.consent_commands:show_consent", customer, say=click.echo)


@consent.command("set")
@click.argument("customer")
@click.option("--tier", type=click.Choice(["none", "metadata", "full"]), required=True)
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="UTC day from which on it counts as none")
@click.option("--anonymization", type=click.Choice(["none", "partial", "full"]), help="more than the installation's")
@click.option("--by", help="who decides  [default: your login name]")
def consent_set(customer: str, tier: str, expires: datetime | None, anonymization: str | None, by: str | None) -> None:
    """Record what a customer allows; it holds within 5 seconds for new requests."""
    run_task(
        "runtime.consent_commands:set_consent",
        customer,
        tier=tier,
        expires=expires,
        anonymization=anonymization,
        by=by,
        say=click.echo,
    )


@consent.command("history")
@click.argument("customer")
def consent_history(customer: str) -> None:
    """Every change that the log still has, oldest first."""
    run_task("runtime.consent_commands:show_history", customer, say=click.echo)


@consent.command("erase")
@click.argument("customer")
@click.option("--by", help="who decides  [default: your login name]")
@click.option("--wait", "wait_s", type=float, default=60.0, show_default=True, help="seconds to wait until it is done")
def consent_erase(customer: str, by: str | None, wait_s: float) -> None:
    """Erase a customer's data up to now, everywhere but in Kafka, whose retention does it."""
    sys.exit(run_task("runtime.consent_commands:erase", customer, by=by, wait_s=wait_s, say=click.echo))


@click.command()
@click.option("--date", "days", type=click.DateTime(["%Y-%m-%d"]), multiple=True, help="UTC day; may be repeated")
@click.option("--dry-run", is_flag=True, help="only say what would be done")
def compact(days: tuple[datetime, ...], dry_run: bool) -> None:
    """Merge the lake's small files, of all days up to the day before yesterday. The role `etl` does it every night."""
    chosen = [day.date() for day in days]
    sys.exit(run_task("sinks.compaction:run_compaction", days=chosen, dry_run=dry_run, say=click.echo))


@click.group(cls=InOrder)
def export() -> None:
    """Datasets out of the lake."""


@export.command("lerobot")
@click.option("--from", "since", type=click.DateTime(["%Y-%m-%d"]), help="first UTC day  [default: the lake's first]")
@click.option("--to", "until", type=click.DateTime(["%Y-%m-%d"]), help="last UTC day  [default: the lake's last]")
@click.option("--robot-type", help="only this one; a dataset holds one robot type")
@click.option("--only-success", is_flag=True, help="only episodes that were judged a success")
@click.option("--out", required=True, help="folder, or s3://bucket/prefix")
def export_lerobot(
    since: datetime | None, until: datetime | None, robot_type: str | None, only_success: bool, out: str
) -> None:
    """Write a LeRobotDataset v3.0 of the episodes whose customers allow training. May be resumed."""
    sys.exit(
        run_task(
            "sinks.export.commands:export_lerobot",
            since=since.date() if since else None,
            until=until.date() if until else None,
            robot_type=robot_type,
            only_success=only_success,
            out=out,
            say=click.echo,
        )
    )


@click.group()
def db() -> None:
    """The Postgres schema."""


@db.command("upgrade")
@click.option("--roles", is_flag=True, help="also make the users of the roles, as `db roles` does")
def db_upgrade(roles: bool) -> None:
    """Bring the database to the newest revision."""
    run_task("sinks.migrate:upgrade")
    if roles:
        run_task("sinks.grants:make_roles", click.echo)
    click.echo("the database is at the newest revision")


@db.command("roles")
def db_roles() -> None:
    """Make a Postgres user for each role that uses it, with the rights that it needs.

    Its password is that of API_DATABASE_URL, SINK_POSTGRES_DATABASE_URL or ETL_DATABASE_URL.
    """
    run_task("sinks.grants:make_roles", click.echo)


@db.command("psql", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL ARGUMENTS]...")
def db_psql(arguments: tuple[str, ...]) -> None:
    """Postgres' client at DATABASE_URL, for a server with TLS too where the client was built without it."""
    sys.exit(run_task("sinks.psql:psql", arguments))


@db.command("access")
def db_access() -> None:
    """Print who may do what, as docs/security.md has it."""
    from schemas.database_access import database_access_table

    click.echo(database_access_table(), nl=False)
