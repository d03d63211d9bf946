"""What the console's navigation lists, in its order: one line a section."""

from __future__ import annotations

from dataclasses import dataclass

from ingest_api.console.session import ROOT
from schemas.scopes import Scope


@dataclass(frozen=True, slots=True)
class Section:
    """name: of the page in code and templates. scope: what a key needs to open it."""

    name: str
    path: str
    title: str
    scope: Scope


SECTIONS = (
    Section("fleet", ROOT, "Fleet", Scope.READ),
    Section("requests", f"{ROOT}/requests", "Requests", Scope.READ),
    Section("episodes", f"{ROOT}/episodes", "Episodes", Scope.READ),
    Section("search", f"{ROOT}/search", "Search", Scope.READ),
    Section("control", f"{ROOT}/control", "Stop and resume", Scope.CONTROL),
    Section("keys", f"{ROOT}/keys", "Keys", Scope.KEYS),
    Section("consent", f"{ROOT}/consent", "Consent", Scope.READ),
    Section("customers", f"{ROOT}/customers", "Customers", Scope.ADMIN),
    Section("dead-letters", f"{ROOT}/dead-letters", "Dead letters", Scope.ADMIN),
)
