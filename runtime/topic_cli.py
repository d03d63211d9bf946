"""The command line of `vlastream topics`. Imports nothing but what `--help` needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def add_topics(main: click.Group, run_task: Callable[..., Any]) -> None:
    """Add the group to the command line. run_task: runs a function, named `module:function`, with settings."""

    @main.group()
    def topics() -> None:
        """Kafka topics."""

    @topics.command("apply")
    @click.option(
        "--acls", is_flag=True, help="also give each role and fleet its permissions, and take away all others"
    )
    def apply(acls: bool) -> None:
        """Create the declared topics and correct their configuration."""
        applied, given = run_task("runtime.topic_admin:apply_all", acls=acls)
        counts = f"{len(applied.created)} created, {len(applied.changed)} changed"
        click.echo(f"{counts}, {len(applied.unchanged)} as declared")
        if given is not None:
            counts = f"{given.created} given, {given.deleted} taken away"
            click.echo(f"permissions: {counts}, {given.unchanged} as declared")

    @topics.command("list")
    def show() -> None:
        """Show the declared topics in the order of the flow."""
        for topic in run_task("runtime.topic_admin:declared_topics"):
            click.echo(f"{topic.name:<44} {topic.partitions:>4}  {topic.cleanup_policy:<14} {topic.message}")

    @topics.command("access")
    def access() -> None:
        """Show which role may read and write which topic, as Markdown."""
        from schemas.access import access_table

        click.echo(access_table(), nl=False)

    @topics.command("asyncapi")
    def asyncapi() -> None:
        """Show topics, messages and operations as an AsyncAPI 3 document."""
        from schemas.asyncapi import document_text

        click.echo(document_text(), nl=False)
