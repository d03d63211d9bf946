"""`vlastream up`, `down`, `ps`, `env`, `scale`, `demo` and `bench`: the embedded stack and what runs beside it."""

from __future__ import annotations

import sys

import click

from runtime.cli_tasks import load, run_task


@click.command()
@click.option("--foreground", is_flag=True, help="stay attached and stop on Ctrl-C")
@click.option("--secure", is_flag=True, help="TLS to every server, and a Kafka user for each role; for a new folder")
def up(foreground: bool, secure: bool) -> None:
    """Start the embedded stack: Kafka, Postgres, Valkey, an S3 server and every role."""
    sys.exit(load("runtime.stack.commands:up")(foreground=foreground, secure=secure))


@click.command()
def down() -> None:
    """Stop the embedded stack."""
    sys.exit(load("runtime.stack.commands:down")())


@click.command()
def ps() -> None:
    """Show the processes of the embedded stack."""
    sys.exit(load("runtime.stack.commands:ps")())


@click.command()
def env() -> None:
    """Addresses and secrets of the stack in this folder, for a shell: `eval "$(vlastream env)"`."""
    run_task("runtime.stack.shell:show_exports", say=click.echo)


@click.command()
@click.argument("role")
@click.argument("count", type=click.IntRange(0, 64))
@click.option("--wait", "wait_s", type=float, default=120.0, show_default=True, help="seconds until it has to be done")
def scale(role: str, count: int, wait_s: float) -> None:
    """Run COUNT processes of ROLE on the embedded stack: `gpu 3`. Who leaves finishes what it has begun.

    Holds until the stack ends. `vlastream ps` shows the roles.
    """
    run_task("runtime.stack.scaling:scale_role", role, count, wait_s=wait_s, say=click.echo)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """A fleet of simulated robots does a tabletop task through the whole pipeline."""
    sys.exit(load("examples.demo.main:main")(list(arguments)))


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure the pipeline under load, and say where every millisecond goes."""
    sys.exit(load("benchmarks.main:main")(list(arguments)))
