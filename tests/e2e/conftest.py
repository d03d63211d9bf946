"""The whole embedded stack with the real policy, started once for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.stack import Stack
from tests.collector import Collector
from tests.e2e.console_browser import launched
from tests.e2e.running_stack import SALT, RunningStack


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the stack's processes send their spans."""
    with Collector() as started:
        yield started


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, collector: Collector
) -> Iterator[RunningStack]:
    layout = Layout(tmp_path_factory.mktemp("stack"))
    environment = {
        "DEFAULT_CONSENT_TIER": "full",
        "ANONYMIZATION_HASH_SALT": SALT,
        # Looking for faces in every frame would keep one of two cores busy; unit tests and the demo do it.
        "ANONYMIZATION_LEVEL": "partial",
        "PARQUET_FLUSH_INTERVAL_S": "2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "IMAGE_EMBEDDING_MODEL": str(Path(__file__).resolve().parents[2] / "examples" / "tabletop" / "vision_tower"),
    }
    with Stack(layout, env=environment, secure=pytestconfig.getoption("--secure-stack")) as started:
        yield RunningStack(layout, started)


@pytest.fixture(scope="session")
def settings(stack: RunningStack) -> Settings:
    """Settings of a command that is typed beside the stack."""
    return stack.settings


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real browser, for the tests of the console."""
    with launched() as browser:
        yield browser
