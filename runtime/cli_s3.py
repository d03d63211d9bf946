"""`vlastream s3`: who may do what in the lake's bucket."""

from __future__ import annotations

import json

import click

from runtime.cli_tasks import InOrder
from schemas.lake_access import LAKE_ROLES, lake_access_table, lake_policy


@click.group(cls=InOrder)
def s3() -> None:
    """The bucket of the lake."""


@s3.command("access")
def s3_access() -> None:
    """Print who may do what, as docs/security.md has it."""
    click.echo(lake_access_table(), nl=False)


@s3.command("policy")
@click.argument("role", type=click.Choice([access.role for access in LAKE_ROLES]))
@click.argument("bucket")
def s3_policy(role: str, bucket: str) -> None:
    """Print the policy (IAM) of a role's user for BUCKET, as JSON."""
    click.echo(json.dumps(lake_policy(role, bucket), indent=2))
