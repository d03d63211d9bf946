"""`vlastream stop`, `resume`, `stops`, `models`, `dlq` and `books`: an operator's hand on the flow."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from runtime.cli_tasks import InOrder, run_task


@click.command()
@click.argument("kind", type=click.Choice(["robot", "model", "fleet", "all"]))
@click.argument("name", default="")
@click.option("--reason", required=True, help="kept with the stop, and told to the robots that it stops")
@click.option("--by", help="who decides  [default: your login name]")
def stop(kind: str, name: str, reason: str, by: str | None) -> None:
    """Stop `robot CUSTOMER/ROBOT`, `model NAME`, `fleet CUSTOMER` or `all`: no action reaches them any more.

    CUSTOMER is an id, an e-mail address, or the name of a fleet.
    """
    _set_stop(kind, name, reason, by, stopped=True)


@click.command()
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
    done = run_task(
        "runtime.control_commands:set_stop",
        kind,
        name,
        stopped=stopped,
        reason=reason,
        by=by,
        warn=lambda text: click.echo(text, err=True),
    )
    click.echo(done)


@click.command()
@click.option("--history", is_flag=True, help="every stop and resume that the topic still has, oldest first")
def stops(history: bool) -> None:
    """Show what is stopped, since when, by whom and why."""
    for line in run_task("runtime.control_commands:list_stops", history=history):
        click.echo(line)


@click.group(cls=InOrder)
def models() -> None:
    """Models, their deployments and how robots are dealt to them."""


@models.command("list")
def models_list() -> None:
    """Show the deployments of the cards: model, policy, shape of an answer, robot types."""
    run_task("runtime.model_commands:list_models", say=click.echo)


@models.command("check")
@click.argument("card", metavar="CARD")
def models_check(card: str) -> None:
    """Load a deployment as a worker would, run a made-up observation, and time every batch size.

    CARD is a deployment's name or a card's file. Exit status 1 with a sentence where it could not serve.
    """
    sys.exit(run_task("gpu_consumers.model_check:check_model", card, say=click.echo))


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
        run_task("runtime.traffic_commands:show_traffic", model, history=history, say=click.echo)
        return
    if not reason:
        raise click.UsageError("say why with --reason: it is kept with the change")
    status = run_task(
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


@click.group(cls=InOrder)
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
    run_task("runtime.dlq.commands:list_letters", limit=limit, say=click.echo, **typed)


@dlq.command("show")
@click.argument("place", metavar="TOPIC/PARTITION/OFFSET")
def dlq_show(place: str) -> None:
    """Everything about one letter; the place may be that of the letter or of the record that died."""
    run_task("runtime.dlq.commands:show_letter", place, say=click.echo)


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
    unfit = run_task(
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
    run_task(
        "runtime.dlq.commands:purge_letters",
        everything=everything,
        confirm=lambda question: yes or click.confirm(question),
        say=click.echo,
        **typed,
    )


@click.command()
@click.option("--wait", "wait_s", type=float, default=30.0, show_default=True, help="seconds to let the sinks catch up")
def books(wait_s: float) -> None:
    """Check that requests, outcomes, rows and Parquet rows are equal in number."""
    sys.exit(run_task("sinks.books:books", wait_s))
