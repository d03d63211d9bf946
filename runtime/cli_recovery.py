"""`vlastream backup`, `rebuild` and `metrics`: recovery, and what a Prometheus is told."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from runtime.cli_tasks import InOrder, run_task

#: A backup that is there: what is typed wrongly is told before anybody is asked to agree to anything.
_BACKUP = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(cls=InOrder)
def backup() -> None:
    """Postgres, Valkey and model files in a folder. Kafka and the lake are replicated stores of their own."""


@backup.command("create")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--hash-models", is_flag=True, help="only the hashes of the weights, not the files")
@click.option(
    "--keep", type=click.IntRange(min=1), help="write it into FOLDER/<time> and keep the newest so many there"
)
def backup_create(folder: Path, hash_models: bool, keep: int | None) -> None:
    """Write a backup into a new FOLDER, while everything runs."""
    target = "sinks.recovery.commands:create_backup"
    sys.exit(run_task(target, folder=folder, copy_models=not hash_models, keep=keep, say=click.echo))


@backup.command("verify")
@click.argument("folder", type=_BACKUP)
@click.option("--files-only", is_flag=True, help="do not restore it for trial")
def backup_verify(folder: Path, files_only: bool) -> None:
    """Check the files' hashes, and restore the database for trial beside the one in use."""
    sys.exit(run_task("sinks.recovery.commands:verify_backup", folder=folder, files_only=files_only, say=click.echo))


@backup.command("restore")
@click.argument("folder", type=_BACKUP)
@click.option("--no-replay", is_flag=True, help="do not read from the log what came after the backup")
@click.option("--models-only", is_flag=True, help="only the weights of the models, where the cards want them")
@click.option("--overwrite-models", is_flag=True, help="also over files that are there and differ")
@click.option("--yes", is_flag=True, help="do not ask")
def backup_restore(folder: Path, no_replay: bool, models_only: bool, overwrite_models: bool, yes: bool) -> None:
    """Put a backup's database into use, brought up to now from the log; the old one stays under another name.

    Weights that are missing are put back; one that differs stays unless --overwrite-models.
    """
    if not yes and not models_only:
        click.confirm("The database in use is replaced. Go on?", abort=True)
    sys.exit(
        run_task(
            "sinks.recovery.commands:restore_backup",
            folder=folder,
            replay=not no_replay,
            models_only=models_only,
            overwrite_models=overwrite_models,
            say=click.echo,
        )
    )


@click.command()
@click.option("--keys-from", type=_BACKUP, help="backup whose customers and keys are taken")
@click.option("--yes", is_flag=True, help="do not ask")
def rebuild(keys_from: Path | None, yes: bool) -> None:
    """Make the database anew from the log and the lake, and put it into use. May run under a running system."""
    if not yes:
        click.confirm("The database in use is replaced. Go on?", abort=True)
    sys.exit(run_task("sinks.recovery.commands:rebuild", keys_from=keys_from, say=click.echo))


@click.group()
def metrics() -> None:
    """What processes export for Prometheus."""


@metrics.command("targets")
def metrics_targets() -> None:
    """Where every process's /metrics is, as a file that Prometheus discovers them by (file_sd_configs)."""
    click.echo(run_task("runtime.targets:targets_file"))
