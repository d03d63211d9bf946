"""The command line of `vlastream fleets`. Imports nothing but what `--help` needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from schemas.quotas import FLEET_QUOTA


def add_fleets(main: click.Group, run_task: Callable[..., Any]) -> None:
    """Add the group to the command line. run_task: runs a function, named `module:function`, with settings."""

    @main.group()
    def fleets() -> None:
        """Fleets whose robots produce to Kafka themselves."""

    @fleets.command("add")
    @click.argument("name")
    @click.option(
        "--bytes-per-s",
        type=float,
        default=FLEET_QUOTA.producer_bytes_per_s,
        show_default=True,
        help="that it may produce to a broker",
    )
    @click.option(
        "--request-percent",
        type=float,
        default=FLEET_QUOTA.request_percent,
        show_default=True,
        help="of one broker thread's time",
    )
    @click.option("--restarted", is_flag=True, help="every gate and sink was restarted since it was added")
    @click.option("--by", help="who decides  [default: your login name]")
    def add(name: str, bytes_per_s: float, request_percent: float, restarted: bool, by: str | None) -> None:
        """Make its topics, user, permissions and quota, restart the gates, and print its password once.

        Repeated, it finishes what is left to do and gives the fleet another password.
        """
        run_task(
            "runtime.fleets.commands:add_fleet",
            name,
            bytes_per_s=bytes_per_s,
            request_percent=request_percent,
            who=by,
            restarted=restarted,
            say=click.echo,
        )

    @fleets.command("list")
    def show() -> None:
        """Show all fleets."""
        for line in run_task("runtime.fleets.commands:list_fleets"):
            click.echo(line)

    @fleets.command("remove")
    @click.argument("name")
    @click.option("--delete-topics", is_flag=True, help="also delete its topics; the lake and Postgres keep their rows")
    @click.option(
        "--wait", "wait_s", type=float, default=60.0, show_default=True, help="seconds for the gates to finish"
    )
    def remove(name: str, delete_topics: bool, wait_s: float) -> None:
        """Shut it out first, then let the gates answer what it has sent, then forget it."""
        run_task(
            "runtime.fleets.commands:remove_fleet", name, delete_topics=delete_topics, wait_s=wait_s, say=click.echo
        )
