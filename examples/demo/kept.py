"""What is kept of each customer after the run: rows and vectors in Postgres, frames in the lake; and the dataset."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from examples.demo.customers import Customers
from examples.demo.stack_access import Stack
from examples.demo.summary import TABLE_WIDTH
from sinks.export.commands import export_lerobot

#: What the embedder gets to finish when the fleet is done.
VECTORS_WAIT_S = 60.0
_BY_CUSTOMER = """
    select l.customer_id, count(*), count(*) filter (where l.status = 'success'),
           count(l.instruction), count(l.instruction_embedding), count(c.id), count(c.image_embedding)
    from inference_log l left join context_metadata c on c.id = l.id
    where l.created_at >= %s
    group by 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Rows of one customer in Postgres, and how many of them hold what consent is needed for."""

    rows: int = 0
    with_actions: int = 0
    instructions: int = 0
    instruction_vectors: int = 0
    scenes: int = 0
    image_vectors: int = 0

    @property
    def complete(self) -> bool:
        """Whether every request that was served has its vectors."""
        return self.instruction_vectors >= self.with_actions and self.image_vectors >= self.with_actions

    @property
    def anything(self) -> bool:
        """Whether more is kept than operation needs."""
        return bool(self.instructions or self.instruction_vectors or self.scenes or self.image_vectors)


def read_kept(database: str, since: datetime) -> dict[str, Kept]:
    """Customer id -> what is kept of their requests from then on."""
    with psycopg.connect(database, connect_timeout=5) as connection:
        rows = connection.execute(_BY_CUSTOMER, [since]).fetchall()
    return {
        row[0]: Kept(
            rows=row[1],
            with_actions=row[2],
            instructions=row[3],
            instruction_vectors=row[4],
            scenes=row[5],
            image_vectors=row[6],
        )
        for row in rows
    }


def wait_for_vectors(
    database: str, customers: Customers, since: datetime, wait_s: float = VECTORS_WAIT_S
) -> dict[str, Kept]:
    """What is kept once every consented request has its vectors, or when the time is over."""
    end = time.monotonic() + wait_s
    while True:
        kept = read_kept(database, since)
        ready = all(kept.get(c.customer_id, Kept()).complete for c in customers if c.consents)
        if ready or time.monotonic() >= end:
            return kept
        time.sleep(0.5)


def problems(customers: Customers, kept: Mapping[str, Kept]) -> list[str]:
    """Where what is kept is not what was allowed."""
    found = []
    for customer in customers:
        own = kept.get(customer.customer_id, Kept())
        if customer.consents and not own.complete:
            found.append(
                f"of {own.with_actions} served requests of the {customer.name}, who consents, "
                f"{own.instruction_vectors} have an instruction vector and {own.image_vectors} an image vector"
            )
        elif not customer.consents and own.anything:
            found.append(f"of the {customer.name}, who never consented, more is kept than operation needs: {own}")
    return found


def show(console: Console, customers: Customers, kept: Mapping[str, Kept]) -> None:
    table = Table(title="what is kept of each customer", min_width=TABLE_WIDTH)
    for name in ("customer", "consent"):
        table.add_column(name)
    for name in ("rows", "texts", "text vectors", "scenes", "image vectors"):
        table.add_column(name, justify="right")
    for customer in customers:
        own = kept.get(customer.customer_id, Kept())
        figures = (own.rows, own.instructions, own.instruction_vectors, own.scenes, own.image_vectors)
        table.add_row(customer.name, "full" if customer.consents else "none", *map(str, figures))
    console.print(table)


def export(console: Console, stack: Stack, folder: Path, say: Callable[[str], None]) -> int:
    """Write the dataset of everything that may be trained on; the number of its frames."""
    status = export_lerobot(
        stack.settings(), since=None, until=None, robot_type=None, only_success=False, out=str(folder), say=say
    )
    if status:
        raise ValueError(f"the export ended with status {status}")
    frames = int(json.loads((folder / "meta" / "info.json").read_text())["total_frames"])
    console.print(f"a LeRobot dataset of {frames} frames: {folder}")
    return frames
