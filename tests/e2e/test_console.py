"""The console as people use it: in a real Chromium, on a desk and on a phone, by keyboard, with what axe finds."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.console_browser import PHONE, needs_chromium, window
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def key(stack: RunningStack) -> str:
    return str(stack.file["api_key"])


@pytest.fixture(scope="module", autouse=True)
def _asked(stack: RunningStack) -> None:
    """Some requests that succeeded, and one that was refused."""
    for seed in range(900, 904):
        assert stack.post(observation(seed)).status_code == 200
    assert stack.post(observation(904, instruction="reach")).status_code == 422


def test_a_person_logs_in_with_a_key_and_sees_the_fleet(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key)
        expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
        expect(page.get_by_role("region", name="Robots seen lately")).to_contain_text("arm-")
        expect(page.get_by_role("region", name="Refusals by reason")).to_contain_text("invalid instruction")
        expect(page.get_by_role("region", name="Deployments")).to_contain_text("tabletop-pi0")
        assert console.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/console"])
def test_no_page_has_a_barrier_that_axe_finds(
    chromium: Browser, stack: RunningStack, key: str, path: str, scheme: str
) -> None:
    with window(chromium, stack, scheme=scheme) as console:
        console.open("/console/login")
        assert console.barriers() == []
        console.log_in(key, path)
        assert console.barriers() == []


@pytest.mark.parametrize("path", ["/console"])
def test_a_page_fits_a_phone(chromium: Browser, stack: RunningStack, key: str, path: str) -> None:
    with window(chromium, stack, size=PHONE) as console:
        console.log_in(key, path)
        assert console.overflow_px() == 0
