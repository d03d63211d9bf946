"""Rows for GET routes: one customer's own, read from Postgres off the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol

import orjson
from fastapi import Response
from sqlalchemy import Executable, text

from runtime.database import Database

Row = dict[str, Any]


class Reader(Protocol):
    """Raises Unavailable while Postgres is away. Blocks."""

    def rows(self, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[Row]:
        """What a statement finds. settings: (name, value) of server settings that hold for it alone."""
        ...


class PostgresReader:
    def __init__(self, database: Database) -> None:
        self._database = database

    def rows(self, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[Row]:
        with self._database.begin() as connection:
            for name, value in settings:
                connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
            return [dict(row) for row in connection.execute(statement).mappings()]


async def read(reader: Reader, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[Row]:
    return await asyncio.to_thread(reader.rows, statement, settings)


def answer(content: Row, status: int = 200) -> Response:
    """JSON of rows: whole numbers beyond bigint, dates and embeddings' numpy types included."""
    body = orjson.dumps(content, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(body, status_code=status, media_type="application/json")


def _plain(value: object) -> Any:
    match value:
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date():
            return value.isoformat()
        case float():
            return value if math.isfinite(value) else None
        case _:
            return str(value)
