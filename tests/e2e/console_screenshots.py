"""Writes the pictures of docs/console: `python -m tests.e2e.console_screenshots`, beside a stack that runs here.

Sends the requests of some robots of the tabletop first, so that the pages have something to show.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
from playwright.sync_api import Browser, Page, expect

from ingest_api.tenancy_commands import create_key
from runtime.kafka import build_producer
from runtime.settings import DEFAULT_STACK_FILE, Settings
from schemas.scopes import Scope
from schemas.topics import REQUESTS, RESULTS
from tests.e2e.console_browser import DESKTOP, PHONE, ConsolePage, launched
from tests.e2e.running_stack import observation

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "console"
ROBOTS = 6
#: Whose the key of an embedded stack is.
EMAIL = "demo@example.org"


def send(api: str, key: str, robots: int, duration_s: float) -> None:
    """Robots ask again and again; now and then one asks for something that is refused."""
    end = time.monotonic() + duration_s
    headers = {"authorization": f"Bearer {key}"}

    def tell(number: int, **changes: object) -> None:
        body = {"robot_id": f"arm-{number}", "episode_id": f"shift-{number}", **changes}
        httpx.post(f"{api}/v1/episodes", json=body, headers=headers, timeout=60)

    def robot(number: int) -> None:
        step = 0
        tell(number, event="start", task="reach the block that is named")
        while time.monotonic() < end:
            changes = {"robot_id": f"arm-{number}", "episode_id": f"shift-{number}", "step": step}
            if step % 9 == 5 and number % 2:
                changes["instruction"] = "reach"
            body = observation(int(time.time() * 1000) % 10_000_000 + number, **changes)
            httpx.post(f"{api}/v1/inference", json=body, headers=headers, timeout=60)
            step += 1
            time.sleep(0.3 + 0.2 * number)
        tell(number, event="end", success=number != 3)

    threads = [threading.Thread(target=robot, args=(number,)) for number in range(robots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def control(api: str, key: str, action: str, reason: str) -> None:
    body = {"action": action, "scope": "robot", "robot_id": "arm-5", "reason": reason, "by": "ana"}
    httpx.post(f"{api}/v1/control", json=body, headers={"authorization": f"Bearer {key}"}).raise_for_status()


def newest(api: str, key: str) -> dict[str, str]:
    """The newest request that succeeded."""
    answer = httpx.get(f"{api}/v1/inferences?status=success&limit=1", headers={"authorization": f"Bearer {key}"})
    found: dict[str, str] = answer.json()["inferences"][0]
    return found


def settings_of(stack: dict[str, Any]) -> Settings:
    """Settings of a command that is typed beside the stack."""
    servers = {"database_url": stack["database"], "redis_url": stack["redis"]}
    return Settings(_env_file=None, kafka_bootstrap_servers=stack["kafka"], **servers, **stack.get("security", {}))


def operators_key(stack: dict[str, Any]) -> str:
    """A new key that may everything, of the customer that the stack's own key has."""
    return create_key(settings_of(stack), EMAIL, name="pictures", scopes=tuple(Scope))


def poison(stack: dict[str, Any]) -> None:
    """Records that no gate can read."""
    producer = build_producer(settings_of(stack), "console-pictures")
    for topic, value in ((REQUESTS, b"not a message"), (REQUESTS, b"\xff\xfe"), (RESULTS, b"\x00\x01\x02 plain text")):
        producer.produce(topic, value, key=b"arm-2")
    producer.flush(10)


def pictures(browser: Browser, api: str, keys: tuple[str, str], folder: Path, scheme: str) -> None:
    """keys: a customer's, and an operator's for what customers do not see."""
    one = newest(api, keys[0])
    pages = {
        "fleet": "/console", "requests": "/console/requests", "request": f"/console/requests/{one['id']}",
        "control": "/console/control", "episodes": "/console/episodes",
        "episode": f"/console/episodes/{one['episode_id']}?robot_id={one['robot_id']}&step=3",
        "search": "/console/search?q=move to the blue block", "scenes": f"/console/search?like={one['request_id']}",
        "keys": "/console/keys", "consent": "/console/consent",
    }  # fmt: skip
    suffix = "-dark" if scheme == "dark" else ""
    for device, size in (("", DESKTOP), ("-phone", PHONE)):
        context = browser.new_context(
            viewport={"width": size["width"], "height": size["height"]},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        context.set_default_timeout(60_000)
        console = ConsolePage(context.new_page(), api)
        console.open("/console/login")
        _picture(console.page, folder / f"login{device}{suffix}.png")
        console.log_in(keys[0])
        for name, path in pages.items():
            console.open(path)
            if name == "control":
                expect(console.page.get_by_role("listitem", name="robot arm-5")).to_be_visible()
            if name in ("request", "episode", "search", "scenes"):
                console.page.evaluate("() => Promise.all([...document.images].map((image) => image.decode()))")
            _picture(console.page, folder / f"{name}{device}{suffix}.png")
        console.page.get_by_role("button", name="Log out").click()
        console.page.get_by_role("heading", name="Log in").wait_for()
        console.log_in(keys[1], "/console/customers")
        _picture(console.page, folder / f"customers{device}{suffix}.png")
        console.open("/console/dead-letters")
        _picture(console.page, folder / f"dead-letters{device}{suffix}.png")
        console.page.locator("tbody a").first.click()
        console.page.get_by_role("heading", name="Dead letter", exact=True).wait_for()
        _picture(console.page, folder / f"dead-letter{device}{suffix}.png")
        context.close()


def _picture(page: Page, file: Path) -> None:
    """A PNG of 256 colours: a page has few. Long lists are cut at the window's end."""
    whole = page.viewport_size == DESKTOP and "requests" not in file.stem
    picture = PIL.Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.quantize(256, method=PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=Path, default=DEFAULT_STACK_FILE)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seconds", type=float, default=60, help="for how long robots ask first")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    arguments = parser.parse_args()
    stack = json.loads(arguments.stack.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.seconds > 0:
        poison(stack)
        send(stack["api"], stack["api_key"], ROBOTS, arguments.seconds)
    control(stack["api"], stack["api_key"], "stop", "its gripper is being changed")
    try:
        with launched() as browser:
            keys = (stack["api_key"], operators_key(stack))
            pictures(browser, stack["api"], keys, arguments.out, arguments.scheme)
    finally:
        control(stack["api"], stack["api_key"], "resume", "the gripper is new")


if __name__ == "__main__":
    main()
