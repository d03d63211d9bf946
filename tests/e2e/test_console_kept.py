"""What was kept and who may what, in a real Chromium: player, search, dead letters, keys, consent."""

from __future__ import annotations

import re
import uuid

import httpx
import pytest
from playwright.sync_api import Browser, expect

from ingest_api.console.episodes import path_of
from ingest_api.tenancy_commands import create_key
from runtime.kafka import build_producer
from runtime.settings import Settings
from schemas.scopes import Scope
from schemas.topics import AUDIT, REQUESTS
from tests.e2e.console_browser import DESKTOP, PHONE, log_in, needs_chromium, window
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow, needs_chromium]

ROBOT = "console-player"
EPISODE = "console/episode#1"
STEPS = 5
PATH = f"{path_of(EPISODE)}?robot_id={ROBOT}"
#: Keeps the names that the player's button takes on.
NAMES_OF_PLAY = """() => {
    const play = document.getElementById("play");
    const told = () => { play.dataset.names = (play.dataset.names ?? "") + play.textContent + " "; };
    new MutationObserver(told).observe(play, { childList: true });
}"""


@pytest.fixture(scope="module")
def key(stack: RunningStack) -> str:
    """An operator's key, which may everything."""
    return create_key(stack.settings, "console@example.org", "enterprise", scopes=tuple(Scope))


@pytest.fixture(scope="module")
def request_id(stack: RunningStack, key: str) -> str:
    """An episode of STEPS requests that its robot told of, once all of it is in Postgres. Id of its last request."""
    client = httpx.Client(base_url=stack.api, headers={"authorization": f"Bearer {key}"}, timeout=30)
    event = {"robot_id": ROBOT, "episode_id": EPISODE}
    last = ""
    with client:
        client.post("/v1/episodes", json={**event, "event": "start", "task": "reach a block"}).raise_for_status()
        for step in range(STEPS):
            body = observation(1000 + step, robot_id=ROBOT, episode_id=EPISODE, step=step)
            client.post("/v1/inference", json=body).raise_for_status()
            last = str(body["request_id"])
        client.post("/v1/episodes", json={**event, "event": "end", "success": True}).raise_for_status()
    for query in (
        "SELECT 1 FROM episodes WHERE robot_id = %s AND success",
        "SELECT 1 FROM context_metadata WHERE robot_id = %s AND image_embedding IS NOT NULL HAVING count(*) = 5",
        "SELECT 1 FROM inference_log WHERE robot_id = %s AND instruction_embedding IS NOT NULL HAVING count(*) = 5",
        "SELECT 1 FROM instruction_analytics WHERE instruction_embedding IS NOT NULL AND length(%s) > 0",
    ):
        stack.wait_for(lambda query=query: stack.rows(query, ROBOT), query)
    return last


@pytest.fixture(scope="module")
def letter(stack: RunningStack, settings: Settings, key: str) -> str:
    """The request id of a record that no gate can read, once its dead letter is there."""
    name = f"poison-{uuid.uuid4().hex[:8]}"
    producer = build_producer(settings, "test-console")
    headers: list[tuple[str, str | bytes | None]] = [("request_id", name.encode())]
    producer.produce(REQUESTS, b"\xff<script>no message</script>", key=b"arm-1", headers=headers)
    assert producer.flush(10) == 0
    return name


def test_an_episode_is_played_back_by_keyboard(
    chromium: Browser, stack: RunningStack, key: str, request_id: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, f"/console/episodes?robot_id={ROBOT}")
        expect(page.get_by_role("row").filter(has_text="reach a block")).to_contain_text("done")
        page.get_by_role("row").filter(has_text="reach a block").get_by_role("link").click()
        console.arrive("Episode")
        frame, at = page.locator("#shown img"), page.locator("#at")
        console.reload_until(lambda: frame.is_visible() and console.width_px(frame) == 224, "the frame did not come")
        keyboard = page.keyboard
        console.tab_to("step")
        keyboard.press("ArrowRight")
        expect(frame).to_have_accessible_name("What the camera base saw at step 1")
        expect(at).to_have_text("1 of 4")
        keyboard.press("End")
        expect(frame).to_have_accessible_name("What the camera base saw at step 4")
        keyboard.press("Shift+Tab")
        assert console.focused() == "next"
        keyboard.press("Shift+Tab")
        assert console.focused() == "play"
        # From the end, it begins anew and stops at the end. How long it plays is the episode's own business.
        page.evaluate(NAMES_OF_PLAY)
        keyboard.press("Enter")
        expect(page.locator("#play")).to_have_attribute("data-names", "Pause Play ")
        expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
        expect(at).to_have_text("4 of 4")
        keyboard.press("Shift+Tab")
        assert console.focused() == "previous"
        keyboard.press("Enter")
        expect(frame).to_have_accessible_name("What the camera base saw at step 3")
        assert console.focused() == "previous"
        expect(page).to_have_url(re.compile("step=3$"))
        page.get_by_text("The same as a table", exact=True).click()
        expect(page.get_by_role("columnheader", name="gripper", exact=True)).to_be_visible()
        page.get_by_role("link", name="looked into", exact=True).click()
        expect(page.get_by_role("heading", name="Request", exact=True, level=1)).to_be_visible()
        assert console.complaints == []


def test_without_scripts_an_episode_is_leafed_through(
    chromium: Browser, stack: RunningStack, key: str, request_id: str
) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{stack.api}/console/login")
        log_in(page, key)
        page.goto(f"{stack.api}{PATH}")
        expect(page.get_by_role("button", name="Play", exact=True)).to_have_count(0)
        page.get_by_role("link", name="Next", exact=True).click()
        expect(page.locator("#at")).to_have_text("1 of 4")
        expect(page.locator("#shown")).to_contain_text("Instruction")
        page.get_by_label("Step", exact=True).fill("3")
        page.get_by_role("button", name="Go", exact=True).click()
        expect(page.locator("#at")).to_have_text("3 of 4")
        expect(page.get_by_role("img", name="What the camera base saw at step 3", exact=True)).to_be_visible()
    finally:
        context.close()


def test_instructions_and_scenes_are_found(chromium: Browser, stack: RunningStack, key: str, request_id: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, "/console/search")
        words = page.get_by_label("Instruction, in your own words", exact=True)
        words.fill("move to a block")
        words.press("Enter")
        expect(page).to_have_url(re.compile("q=move"))
        found = page.get_by_role("region", name=re.compile("mean about the same"))
        link = found.get_by_role("link", name=re.compile("^Scenes like its own")).first
        console.reload_until(link.is_visible, "no instruction was found")
        expect(found.get_by_role("listitem").first).to_contain_text("similarity")
        link.click()
        expect(page).to_have_url(re.compile("like="))
        scenes = page.get_by_role("region", name=re.compile("look like that of the request"))
        picture = scenes.get_by_role("img").first
        console.reload_until(lambda: picture.is_visible() and console.width_px(picture) == 224, "no scene was found")
        expect(scenes.get_by_role("listitem").first).to_contain_text("similarity")
        assert console.complaints == []


def test_a_poisoned_record_is_found_looked_at_and_sent_again(
    chromium: Browser, stack: RunningStack, key: str, letter: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, f"/console/dead-letters?topic={REQUESTS}")
        row = page.get_by_role("row").filter(has_text=letter)
        console.reload_until(lambda: row.count() >= 1, "no letter came")
        row.first.get_by_role("link").click()
        console.arrive("Dead letter")
        place = page.url.partition("/console/dead-letters/")[2]
        expect(page.get_by_role("region", name="What died")).to_contain_text("arm-1")
        expect(page.get_by_role("region", name="Headers")).to_contain_text("__connect.errors.exception.message")
        expect(page.locator("pre.dump").last).to_contain_text("script>no")
        page.get_by_role("link", name="Send it again", exact=True).click()
        console.arrive("Send 1 dead letter again")
        page.get_by_role("button", name="Send 1 again", exact=True).click()
        console.arrive("1 sent again")
        # Loaded again, the page says the same, and nothing is sent: there is one replay in the audit log below.
        page.reload()
        console.arrive("1 sent again")
        expect(page.get_by_role("region", name="What became of each")).to_contain_text(f"{REQUESTS}/")
        # The cause is still there: it passed the same gate, and died again.
        console.open(f"/console/dead-letters?topic={REQUESTS}")
        console.reload_until(lambda: row.count() >= 2, "it did not die again")
        assert console.complaints == []
    query = "SELECT details->>'sent' FROM audit_log WHERE action = 'dlq.replayed' AND details->>'places' = %s"
    stack.wait_for(lambda: stack.rows(query, place), f"{AUDIT} has no replay")
    assert stack.rows(query, place) == [("1",)]


def test_a_key_is_made_used_and_revoked(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, "/console/keys")
        page.get_by_label("Name", exact=True).fill("line 3 <b>bold</b>")
        page.get_by_role("checkbox", name=re.compile("^control")).check()
        page.get_by_role("button", name="Make the key", exact=True).click()
        made = page.get_by_label("Key", exact=True).input_value()
        expect(page.get_by_role("status").first).to_contain_text("Copy it now")

        def status() -> int:
            headers = {"authorization": f"Bearer {made}"}
            return httpx.get(f"{stack.api}/v1/inferences", headers=headers, timeout=30).status_code

        assert status() == 200
        page.get_by_role("link", name=re.compile("^I have it")).click()
        row = page.get_by_role("row").filter(has_text=made[:12])
        expect(row).to_contain_text("line 3 <b>bold</b>")
        row.get_by_role("link", name=re.compile("^Revoke")).click()
        console.arrive("Revoke this key")
        page.get_by_role("button", name="Revoke", exact=True).click()
        expect(row).to_contain_text("revoked")
        stack.wait_for(lambda: status() == 401, "the key is still good")
        assert console.complaints == []


def test_a_new_keys_page_that_is_loaded_again_makes_no_second_key(
    chromium: Browser, stack: RunningStack, key: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, "/console/keys")
        page.get_by_label("Name", exact=True).fill("made once")
        page.get_by_role("button", name="Make the key", exact=True).click()
        console.arrive("The new key")
        # The browser sends the form again.
        page.reload()
        console.arrive("This form was sent already")
        page.get_by_role("link", name="Look at what became of it", exact=True).click()
        console.arrive("Keys")
        expect(page.get_by_role("row").filter(has_text="made once")).to_have_count(1)


def test_consent_is_changed_and_an_erasure_asked_for(chromium: Browser, stack: RunningStack) -> None:
    own = create_key(stack.settings, "consent@example.org")
    with window(chromium, stack) as console:
        page = console.log_in(own, "/console/consent")
        page.get_by_role("radio", name=re.compile("^metadata")).check()
        page.get_by_role("button", name="Look at the change", exact=True).click()
        console.arrive("Change the consent")
        page.get_by_role("button", name="Change it", exact=True).click()
        expect(page).to_have_url(re.compile("done=changed"))
        holds = page.get_by_role("region", name="What holds now").filter(has_text="no pixels")
        row = page.get_by_role("row").filter(has_text="metadata")
        console.reload_until(lambda: holds.count() > 0 and row.count() > 0, "the change does not show")
        page.get_by_role("link", name="Erase what is kept", exact=True).click()
        page.get_by_label("Type the word erase", exact=True).fill("erase")
        page.get_by_role("button", name="Erase", exact=True).click()
        expect(page.get_by_text("The erasure is asked for")).to_be_visible()
        assert console.complaints == []


@pytest.mark.parametrize(
    ("size", "scheme"), [(PHONE, "light"), (DESKTOP, "dark"), (DESKTOP, "light")], ids=["phone", "dark", "desktop"]
)
def test_no_page_has_a_barrier_or_is_wider_than_its_window(
    chromium: Browser, stack: RunningStack, key: str, request_id: str, letter: str, size: dict[str, int], scheme: str
) -> None:
    paths = ["/console/episodes", PATH, "/console/search", "/console/search?q=reach the red block"]
    paths += [
        f"/console/search?like={request_id}",
        "/console/keys",
        "/console/consent",
        "/console/consent/erase",
    ]
    paths += ["/console/customers", "/console/dead-letters", "/console/dead-letters/replay"]
    with window(chromium, stack, size=size, scheme=scheme) as console:
        page = console.log_in(key, "/console/dead-letters")
        row = page.get_by_role("row").filter(has_text=letter)
        console.reload_until(lambda: row.count() > 0, "no letter came")
        paths.append(str(row.first.get_by_role("link").get_attribute("href")))
        console.open("/console/keys")
        paths.append(str(page.get_by_role("link", name=re.compile("^Revoke")).first.get_attribute("href")))
        paths.append(paths[-1].replace("revoke", "rotate"))
        found: dict[str, list[str]] = {}
        for path in paths:
            console.open(path)
            assert page.get_by_role("heading", level=1).count() == 1, path
            wide_px = console.overflow_px()
            found[path] = console.barriers() + ([f"wide: {wide_px}"] if wide_px else [])
        assert {path: each for path, each in found.items() if each} == {}
