"""`vlastream robots`: robot types and card files."""

from __future__ import annotations

import sys

import click

from runtime.cli_tasks import InOrder, run_task


@click.group(cls=InOrder)
def robots() -> None:
    """Robot types: which ones are known, and whether a card file holds."""


@robots.command("list")
def robots_list() -> None:
    """Every robot type of the installation, and the models that drive it."""
    run_task("runtime.robot_commands:list_robots", say=click.echo)


@robots.command("show")
@click.argument("robot_type")
def robots_show(robot_type: str) -> None:
    """One robot type: where its limits come from, its state, and its action spaces."""
    run_task("runtime.robot_commands:show_robot", robot_type, say=click.echo)


@robots.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def robots_check(file: str) -> None:
    """Say what is wrong with a card file, line by line, or which deployments it fits. Exit status 1 if it is wrong."""
    sys.exit(run_task("runtime.robot_commands:check_card", file, say=click.echo))
