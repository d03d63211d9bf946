"""/console/customers: who the customers are, what they may and what they used this month. For operators."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.session import ROOT, Viewer
from ingest_api.customer_admin import CustomerAdmin, described
from ingest_api.customers import UsageParameters, usage_query
from ingest_api.own_keys import admin
from ingest_api.query import MOST_ROWS, parsed
from ingest_api.reading import Reader, read
from runtime.windows import first_day_of_month
from schemas.scopes import Scope

CUSTOMERS = f"{ROOT}/customers"
_NOTHING = {"requests": 0, "successful": 0, "robots": 0}


class CustomersPage:
    def __init__(self, frame: Frame, *, customers: CustomerAdmin, reader: Reader) -> None:
        self._frame = frame
        self._customers = customers
        self._reader = reader
        frame.shows(CUSTOMERS, self.show, Scope.ADMIN)

    async def show(self, request: Request, viewer: Viewer) -> Response:
        month = datetime.combine(first_day_of_month(time.time()), datetime.min.time(), UTC)
        span = {"since": f"{month:%Y-%m-%dT%H:%M:%SZ}", "limit": str(MOST_ROWS)}
        wanted = parsed({"by": "month", **span}, UsageParameters)
        used = {row["customer_id"]: row for row in await read(self._reader, usage_query(wanted, None))}
        rows: list[dict[str, Any]] = [described(row) for row in await admin(self._customers.all)]
        for row in rows:
            row.update({name: used.get(row["id"], _NOTHING)[name] for name in _NOTHING})
        return self._frame.respond(
            request, viewer, "customers.html", month=month, rows=rows[:MOST_ROWS], count=len(rows)
        )
