"""`vlastream`: one command line for every role and every one-shot task.

Commands name their code as strings, imported when the command runs: `--help` stays fast, and a process that
needs no torch never imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime

import click

from runtime import cli_recovery, cli_robots, cli_tenancy
from runtime.cli_tasks import InOrder as _InOrder
from runtime.cli_tasks import load as _load
from runtime.cli_tasks import run_role as _run_role
from runtime.cli_tasks import run_task as _run_task
from runtime.fleets.cli import add_fleets
from runtime.topic_cli import add_topics


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlastream")
def main() -> None:
    """Streaming inference on Apache Kafka for robots that run vision-language-action models.

    Roles run until they are told to stop; settings come from the environment and `.env`.
    """


@main.command()
def api() -> None:
    """Role: REST and WebSocket in, requests to Kafka, replies out."""
    _run_role("api", "ingest_api.server:main")


@main.command()
def gate() -> None:
    """Role: the Faust agents that judge requests and actions."""
    _run_role("gate", "stream_agents.server:main")


@main.command()
@click.option("--all", "everything", is_flag=True, help="one worker for each GPU of this host, kept running")
def gpu(everything: bool) -> None:
    """Role: batched inference for one deployment on one device."""
    _run_role("gpu", "gpu_consumers.device_group:main" if everything else "gpu_consumers.worker:main")


@main.group(cls=_InOrder)
def sink() -> None:
    """Roles: what writes outcomes and observations to rest."""


@sink.command("postgres")
def sink_postgres() -> None:
    """Role: one row an outcome in Postgres."""
    _run_role("sink-postgres", "sinks.postgres:main")


@sink.command("parquet")
def sink_parquet() -> None:
    """Role: observations and outcomes as Parquet on S3 or in a folder."""
    _run_role("sink-parquet", "sinks.parquet:main")


@main.command()
def embedder() -> None:
    """Role: embeddings of the instructions and images that customers allow."""
    _run_role("embedder", "gpu_consumers.embedder.server:main")


@main.group(cls=_InOrder)
def etl() -> None:
    """From rows to analytics."""


@etl.command("serve")
def etl_serve() -> None:
    """Role: runs the ETL, retention, compaction and erasures when they are due."""
    _run_role("etl", "sinks.etl.server:main")


@etl.command("run")
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), help="UTC day  [default: yesterday]")
@click.option("--pipeline", "pipelines", multiple=True, help="only this one; may be repeated")
@click.option("--dry-run", is_flag=True, help="only say what would be written")
def etl_run(date: datetime | None, pipelines: tuple[str, ...], dry_run: bool) -> None:
    """Compute one day's analytics now. Running it again gives the same result."""
    day = date.date() if date is not None else None
    sys.exit(_run_task("sinks.etl.commands:run_etl", day=day, pipelines=pipelines, dry_run=dry_run, say=click.echo))


@main.command()
@click.option("--dry-run", is_flag=True, help="only say what would be deleted")
def retention(dry_run: bool) -> None:
    """Delete what is older than its time, after its copy in the lake is verified."""
    sys.exit(_run_task("sinks.retention:run_retention", dry_run=dry_run, say=click.echo))


@main.group(cls=_InOrder)
def consent() -> None:
    """What customers allow to be kept."""


@consent.command("get")
@click.argument("customer")
def consent_get(customer: str) -> None:
    """What holds for a customer now."""
    _run_task("runtime.consent_commands:show_consent", customer, say=click.echo)


@consent.command("set")
@click.argument("customer")
@click.option("--tier", type=click.Choice(["none", "metadata", "full"]), required=True)
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="UTC day from which on it counts as none")
@click.option("--anonymization", type=click.Choice(["none", "partial", "full"]), help="more than the installation's")
@click.option("--by", help="who decides  [default: your login name]")
def consent_set(customer: str, tier: str, expires: datetime | None, anonymization: str | None, by: str | None) -> None:
    """Record what a customer allows; it holds within 5 seconds for new requests."""
    _run_task(
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
    _run_task("runtime.consent_commands:show_history", customer, say=click.echo)


@consent.command("erase")
@click.argument("customer")
@click.option("--by", help="who decides  [default: your login name]")
@click.option("--wait", "wait_s", type=float, default=60.0, show_default=True, help="seconds to wait until it is done")
def consent_erase(customer: str, by: str | None, wait_s: float) -> None:
    """Erase a customer's data up to now, everywhere but in Kafka, whose retention does it."""
    sys.exit(_run_task("runtime.consent_commands:erase", customer, by=by, wait_s=wait_s, say=click.echo))


@main.command()
@click.option("--date", "days", type=click.DateTime(["%Y-%m-%d"]), multiple=True, help="UTC day; may be repeated")
@click.option("--dry-run", is_flag=True, help="only say what would be done")
def compact(days: tuple[datetime, ...], dry_run: bool) -> None:
    """Merge the lake's small files, of all days up to the day before yesterday. The role `etl` does it every night."""
    chosen = [day.date() for day in days]
    sys.exit(_run_task("sinks.compaction:run_compaction", days=chosen, dry_run=dry_run, say=click.echo))


@main.group(cls=_InOrder)
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
        _run_task(
            "sinks.export.commands:export_lerobot",
            since=since.date() if since else None,
            until=until.date() if until else None,
            robot_type=robot_type,
            only_success=only_success,
            out=out,
            say=click.echo,
        )
    )


main.add_command(cli_tenancy.config)
main.add_command(cli_robots.robots)
add_topics(main, _run_task)
add_fleets(main, _run_task)


@main.group()
def db() -> None:
    """The Postgres schema."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest revision."""
    _run_task("sinks.migrate:upgrade")
    click.echo("the database is at the newest revision")


@db.command("roles")
def db_roles() -> None:
    """Make a Postgres user for each role that uses it, with the rights that it needs."""
    _run_task("sinks.grants:make_roles", click.echo)


@db.command("access")
def db_access() -> None:
    """Print who may do what, as docs/security.md has it."""
    from schemas.database_access import database_access_table

    click.echo(database_access_table(), nl=False)


for _group in (cli_tenancy.keys, cli_tenancy.customers, cli_tenancy.audit):
    main.add_command(_group)


@main.command()
@click.argument("kind", type=click.Choice(["robot", "model", "fleet", "all"]))
@click.argument("name", default="")
@click.option("--reason", required=True, help="kept with the stop, and told to the robots that it stops")
@click.option("--by", help="who decides  [default: your login name]")
def stop(kind: str, name: str, reason: str, by: str | None) -> None:
    """Stop `robot CUSTOMER/ROBOT`, `model NAME`, `fleet CUSTOMER` or `all`: no action reaches them any more."""
    _set_stop(kind, name, reason, by, stopped=True)


@main.command()
@click.argument("kind", type=click.Choice(["robot", "model", "fleet", "all"]))
@click.argument("name", default="")
@click.option("--reason", required=True, help="kept with the record")
@click.option("--by", help="who decides  [default: your login name]")
def resume(kind: str, name: str, reason: str, by: str | None) -> None:
    """Lift the stop of the same target. A wider stop that holds for it stays."""
    _set_stop(kind, name, reason, by, stopped=False)


def _set_stop(kind: str, name: str, reason: str, by: str | None, *, stopped: bool) -> None:
    if bool(name) == (kind == "all"):
        raise click.UsageError("`all` takes no name, and everything else takes one")
    done = _run_task(
        "runtime.control_commands:set_stop",
        kind,
        name,
        stopped=stopped,
        reason=reason,
        by=by,
        warn=lambda text: click.echo(text, err=True),
    )
    click.echo(done)


@main.command()
@click.option("--history", is_flag=True, help="every stop and resume that the topic still has, oldest first")
def stops(history: bool) -> None:
    """Show what is stopped, since when, by whom and why."""
    for line in _run_task("runtime.control_commands:list_stops", history=history):
        click.echo(line)


@main.group(cls=_InOrder)
def models() -> None:
    """Models, their deployments and how robots are dealt to them."""


@models.command("list")
def models_list() -> None:
    """Show the deployments of the cards: model, policy, shape of an answer, robot types."""
    _run_task("runtime.model_commands:list_models", say=click.echo)


@models.command("check")
@click.argument("card", metavar="CARD")
def models_check(card: str) -> None:
    """Load a deployment as a worker would, run a made-up observation, and time every batch size.

    CARD is a deployment's name or a card's file. Exit status 1 with a sentence where it could not serve.
    """
    sys.exit(_run_task("gpu_consumers.model_check:check_model", card, say=click.echo))


@models.command("traffic")
@click.argument("model")
@click.argument("shares", nargs=-1, metavar="[DEPLOYMENT=WEIGHT]...")
@click.option("--reason", default="", help="kept with the change")
@click.option("--by", help="who decides  [default: your login name]")
@click.option("--force", is_flag=True, help="also to deployments without a live worker")
@click.option("--wait", "wait_s", type=float, default=60.0, show_default=True, help="seconds to let others drain")
@click.option("--history", is_flag=True, help="without shares: every change that the topic still has")
def models_traffic(
    model: str, shares: tuple[str, ...], reason: str, by: str | None, force: bool, wait_s: float, history: bool
) -> None:
    """Show how MODEL's robots are dealt to its deployments, or deal them anew: `pi0 pi0-a=90 pi0-b=10`.

    A deployment that is not named gets none. Holds within a second, without a restart. Requests in flight end where
    they are; the command waits until deployments without a share have drained.
    """
    if not shares:
        _run_task("runtime.traffic_commands:show_traffic", model, history=history, say=click.echo)
        return
    if not reason:
        raise click.UsageError("say why with --reason: it is kept with the change")
    status = _run_task(
        "runtime.traffic_commands:set_traffic",
        model,
        shares,
        reason=reason,
        by=by,
        force=force,
        wait_s=wait_s,
        say=click.echo,
    )
    sys.exit(status)


@main.group(cls=_InOrder)
def dlq() -> None:
    """Dead letters: records that no stage could read, with the reason beside them."""


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which letters."""
    for option in (
        click.option("--until", help="those that died before this time"),
        click.option("--since", help="those that died since: 2026-01-31T12:00:00Z, or 90s, 15m, 2h, 3d ago"),
        click.option("--reason", "reasons", multiple=True, help="as `list` shows it; may be repeated"),
        click.option("--topic", "topics", multiple=True, help="topic of the dead records; may be repeated"),
    ):
        command = option(command)
    return command


@dlq.command("list")
@_filtered
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="lines at most")
def dlq_list(limit: int, **typed: object) -> None:
    """One line a letter, the oldest of each topic first."""
    _run_task("runtime.dlq.commands:list_letters", limit=limit, say=click.echo, **typed)


@dlq.command("show")
@click.argument("place", metavar="TOPIC/PARTITION/OFFSET")
def dlq_show(place: str) -> None:
    """Everything about one letter; the place may be that of the letter or of the record that died."""
    _run_task("runtime.dlq.commands:show_letter", place, say=click.echo)


@dlq.command("replay")
@_filtered
@click.argument("places", nargs=-1, metavar="[TOPIC/PARTITION/OFFSET]...")
@click.option("--limit", type=click.IntRange(min=1), help="letters at most, the oldest first")
@click.option("--all", "everything", is_flag=True, help="without a filter: all of them")
@click.option("--dry-run", is_flag=True, help="only say what would be sent")
def dlq_replay(limit: int | None, everything: bool, dry_run: bool, **typed: object) -> None:
    """Send the original records again, to their own topics and partitions: through the same gates as any other.

    Letters stay where they are. Exit status 1 where one could not be sent.
    """
    unfit = _run_task(
        "runtime.dlq.commands:replay_letters",
        limit=limit,
        dry_run=dry_run,
        everything=everything,
        say=click.echo,
        **typed,
    )
    sys.exit(1 if unfit else 0)


@dlq.command("purge")
@_filtered
@click.option("--all", "everything", is_flag=True, help="without a filter: all; with one: also others in front of them")
@click.option("--yes", is_flag=True, help="do not ask")
def dlq_purge(everything: bool, yes: bool, **typed: object) -> None:
    """Delete letters for good. Kafka deletes from the front of a partition only."""
    _run_task(
        "runtime.dlq.commands:purge_letters",
        everything=everything,
        confirm=lambda question: yes or click.confirm(question),
        say=click.echo,
        **typed,
    )


for _command in (cli_recovery.backup, cli_recovery.rebuild, cli_recovery.metrics):
    main.add_command(_command)


@main.command()
@click.option("--wait", "wait_s", type=float, default=30.0, show_default=True, help="seconds to let the sinks catch up")
def books(wait_s: float) -> None:
    """Check that requests, outcomes, rows and Parquet rows are equal in number."""
    sys.exit(_run_task("sinks.books:books", wait_s))


@main.command()
@click.option("--foreground", is_flag=True, help="stay attached and stop on Ctrl-C")
@click.option("--secure", is_flag=True, help="TLS to every server, and a Kafka user for each role; for a new folder")
def up(foreground: bool, secure: bool) -> None:
    """Start the embedded stack: Kafka, Postgres, Valkey, an S3 server and every role."""
    sys.exit(_load("runtime.stack.commands:up")(foreground=foreground, secure=secure))


@main.command()
def down() -> None:
    """Stop the embedded stack."""
    sys.exit(_load("runtime.stack.commands:down")())


@main.command()
def ps() -> None:
    """Show the processes of the embedded stack."""
    sys.exit(_load("runtime.stack.commands:ps")())


@main.command()
def env() -> None:
    """Addresses and secrets of the stack in this folder, for a shell: `eval "$(vlastream env)"`."""
    _run_task("runtime.stack.shell:show_exports", say=click.echo)


@main.command()
@click.argument("role")
@click.argument("count", type=click.IntRange(0, 64))
@click.option("--wait", "wait_s", type=float, default=120.0, show_default=True, help="seconds until it has to be done")
def scale(role: str, count: int, wait_s: float) -> None:
    """Run COUNT processes of ROLE on the embedded stack: `gpu 3`. Who leaves finishes what it has begun.

    Holds until the stack ends. `vlastream ps` shows the roles.
    """
    _run_task("runtime.stack.scaling:scale_role", role, count, wait_s=wait_s, say=click.echo)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """A fleet of simulated robots does a tabletop task through the whole pipeline."""
    sys.exit(_load("examples.demo.main:main")(list(arguments)))


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure the pipeline under load, and say where every millisecond goes."""
    sys.exit(_load("benchmarks.main:main")(list(arguments)))


if __name__ == "__main__":
    main()
