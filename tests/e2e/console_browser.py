"""The console in a real Chromium: how tests open it, log in, and find what a person could not use.

The pages' policy (CSP) lets no string be evaluated, so `wait_for_function` does not work in them: wait with `expect`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.e2e.running_stack import RunningStack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed: `make test-console` installs Debian's package `chromium`"
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
#: How long a page may take to show what is waited for, on a machine that is busy.
PATIENCE_MS = 60_000
#: How long what a page shows may take to reach the stores that it is made from.
_STORED_S = 120
#: Keeps the parts of a page that renew themselves as they are.
_STILL = """() => ["htmx:beforeRequest", "htmx:beforeSwap"].forEach(
    (name) => document.addEventListener(name, (event) => event.preventDefault()))"""
#: Width of an image once it is decoded; 0 for one that did not load.
_WIDTH = "image => image.decode().then(() => image.naturalWidth, () => 0)"
#: Whether the whole page, not a region of it, is wider than the window.
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def launched() -> Iterator[Browser]:
    """One Chromium. Module-wide at most: while Playwright is open, no other event loop runs in this thread."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Its sandbox does not work for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class ConsolePage:
    """One window on the console of a running stack, and every complaint of the browser about it."""

    def __init__(self, page: Page, api: str) -> None:
        self.page = page
        self.api = api
        #: What the browser refused or could not do: blocked by CSP, script errors, failed loads.
        self.complaints: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, path: str) -> Page:
        """Go to a path of the console, and wait until its scripts run."""
        self.page.goto(self.api + path)
        return self.page

    def log_in(self, key: str, path: str = "/console") -> Page:
        """Open a path and get there by the login page. Back once the scripts of the page run."""
        log_in(self.open(path), key)
        return self.page

    def arrive(self, heading: str) -> None:
        """Wait for the page with this first heading, after a key or a press that leads to it."""
        name = re.compile(rf"^{re.escape(heading)}\b")
        self.page.get_by_role("heading", name=name, level=1).wait_for()
        self.page.wait_for_load_state()

    def hold_still(self) -> None:
        """From here on no part of the page renews itself: what is looked at stays what it is."""
        self.page.evaluate(_STILL)

    def reload_until(self, shows: Callable[[], bool], what: str) -> None:
        """Load the page again until it shows what is on its way to it; `what` is told where it does not come.

        For pages that do not renew themselves. Call it on the page that is meant, once it is there: a navigation that
        is under way would be lost. Complaints about a page that was not ready count no longer.
        """
        self.page.wait_for_load_state()
        end, before = time.monotonic() + _STORED_S, len(self.complaints)
        while not shows():
            assert time.monotonic() < end, what
            del self.complaints[before:]
            self.page.reload()

    @staticmethod
    def width_px(image: Locator) -> int:
        """Own width of an image once it is there; 0 where it could not be loaded."""
        return int(image.evaluate(_WIDTH))

    def barriers(self) -> list[str]:
        """What axe finds on the page as it is now: rule, and the elements that break it."""
        self.hold_still()
        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {', '.join(str(node['target']) for node in rule['nodes'])}" for rule in found]

    def overflow_px(self) -> int:
        """By how much the page is wider than its window."""
        return int(self.page.evaluate(_OVERFLOW))

    def focused(self) -> str:
        """Name of the focused element as it reads, for walks by keyboard."""
        script = "(e => e.id || e.textContent.trim() || e.name || e.tagName)(document.activeElement)"
        return str(self.page.evaluate(script))

    def tab_to(self, name: str, most: int = 60) -> None:
        """Press Tab until the element of this name or id has the focus."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.focused() == name:
                return
        raise AssertionError(f"{name} is not reached by {most} presses of Tab")


def log_in(page: Page, key: str) -> None:
    """Type a key into the login page, and wait for the page behind it."""
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_role("button", name="Log out", exact=True).wait_for()
    page.wait_for_load_state()


@contextmanager
def window(
    browser: Browser, stack: RunningStack, *, size: dict[str, int] | None = None, scheme: str = "light"
) -> Iterator[ConsolePage]:
    """A window without cookies. size: DESKTOP or PHONE; scheme: light or dark."""
    context = browser.new_context(
        viewport={"width": (size or DESKTOP)["width"], "height": (size or DESKTOP)["height"]},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield ConsolePage(context.new_page(), stack.api)
    finally:
        context.close()
