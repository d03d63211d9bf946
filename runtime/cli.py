"""`vlastream`: one command line for every role and every one-shot task.

Commands name their code as strings, imported when the command runs: `--help` stays fast, and a process that
needs no torch never imports it.
"""

from __future__ import annotations

import click

from runtime import cli_data, cli_operator, cli_recovery, cli_robots, cli_s3, cli_stack, cli_tenancy
from runtime.cli_tasks import InOrder, run_role, run_task
from runtime.fleets.cli import add_fleets
from runtime.topic_cli import add_topics


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlastream")
def main() -> None:
    """Streaming inference on Apache Kafka for robots that run vision-language-action models.

    Roles run until they are told to stop; settings come from the environment and `.env`.
    """


@main.command()
def api() -> None:
    """Role: REST and WebSocket in, requests to Kafka, replies out."""
    run_role("api", "ingest_api.server:main")


@main.command()
def gate() -> None:
    """Role: the Faust agents that judge requests and actions."""
    run_role("gate", "stream_agents.server:main")


@main.command()
@click.option("--all", "everything", is_flag=True, help="one worker for each GPU of this host, kept running")
def gpu(everything: bool) -> None:
    """Role: batched inference for one deployment on one device."""
    run_role("gpu", "gpu_consumers.device_group:main" if everything else "gpu_consumers.worker:main")


@main.group(cls=InOrder)
def sink() -> None:
    """Roles: what writes outcomes and observations to rest."""


@sink.command("postgres")
def sink_postgres() -> None:
    """Role: one row an outcome in Postgres."""
    run_role("sink-postgres", "sinks.postgres:main")


@sink.command("parquet")
def sink_parquet() -> None:
    """Role: observations and outcomes as Parquet on S3 or in a folder."""
    run_role("sink-parquet", "sinks.parquet:main")


@main.command()
def embedder() -> None:
    """Role: embeddings of the instructions and images that customers allow."""
    run_role("embedder", "gpu_consumers.embedder.server:main")


def _add(*commands: click.Command) -> None:
    for command in commands:
        main.add_command(command)


_add(cli_data.etl, cli_data.retention, cli_data.consent, cli_data.compact, cli_data.export)
_add(cli_tenancy.config, cli_robots.robots)
add_topics(main, run_task)
add_fleets(main, run_task)
_add(cli_data.db, cli_s3.s3, cli_tenancy.keys, cli_tenancy.customers, cli_tenancy.audit)
_add(cli_operator.stop, cli_operator.resume, cli_operator.stops, cli_operator.models, cli_operator.dlq)
_add(cli_recovery.backup, cli_recovery.rebuild, cli_recovery.metrics, cli_operator.books)
_add(cli_stack.up, cli_stack.down, cli_stack.ps, cli_stack.env, cli_stack.scale, cli_stack.demo, cli_stack.bench)


if __name__ == "__main__":
    main()
