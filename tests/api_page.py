"""`python -m tests.api_page > docs/api.md`: the page of the routes of an API that was built without its servers."""

from __future__ import annotations

from ingest_api.api_page import page
from schemas import asyncapi
from tests.unit.api_case import Api


def written() -> str:
    return page(Api().app.openapi(), asyncapi.document())


if __name__ == "__main__":
    print(written(), end="")
