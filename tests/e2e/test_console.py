"""The console as people use it: in a real Chromium, on a desk and on a phone, by keyboard, with what axe finds."""

from __future__ import annotations

import itertools
import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from ingest_api.console.session import COOKIE, ROOT
from tests.e2e.console_browser import DESKTOP, PHONE, log_in, needs_chromium, window
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow, needs_chromium]

ROBOT = "console-arm"
#: Every page without an id in its path; that of a request is found by its list.
PAGES = ["/console", "/console/requests", "/console/requests/newest", "/console/control"]
#: Markup with a script in it, and the moment at which that would have run.
OWN_MISTAKE = """() => new Promise((done) => {
    document.body.insertAdjacentHTML("beforeend", "<img id=ours src=x onerror=window.hacked=1>");
    document.getElementById("ours").addEventListener("error", () => done());
})"""
#: A line of an accessibility tree that tells of something to use or to see, and not its name.
NAMELESS = re.compile(r"^\s*- (?:link|button|textbox|combobox|radio|img|region)(?: \[.*)?:?$", re.MULTILINE)


@pytest.fixture(scope="module")
def key(stack: RunningStack) -> str:
    return str(stack.file["api_key"])


@pytest.fixture(scope="module", autouse=True)
def request_id(stack: RunningStack) -> str:
    """Some requests that succeeded, and one that was refused. Of the last one that succeeded."""
    bodies = [observation(seed, robot_id=ROBOT) for seed in range(900, 904)]
    for body in bodies:
        assert stack.post(body).status_code == 200
    assert stack.post(observation(904, robot_id=ROBOT, instruction="reach")).status_code == 422
    return str(bodies[-1]["request_id"])


def place_of(stack: RunningStack, request_id: str) -> str:
    """Path of a request's page, once its row is there."""
    query = "SELECT id FROM inference_log WHERE request_id = %s"
    stack.wait_for(lambda: stack.rows(query, request_id), "the row did not come")
    return f"/console/requests/{stack.rows(query, request_id)[0][0]}"


def test_a_person_logs_in_with_a_key_and_sees_the_fleet(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key)
        expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
        expect(page.get_by_role("region", name="Robots seen lately")).to_contain_text(ROBOT)
        expect(page.get_by_role("region", name="Refusals by reason")).to_contain_text("invalid instruction")
        expect(page.get_by_role("region", name="Deployments")).to_contain_text("tabletop-pi0")
        expect(page.get_by_role("region", name="Latency")).to_contain_text("ms")
        assert console.complaints == []


def test_the_fleet_renews_itself_without_moving_the_focus(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key)
        page.get_by_role("region", name="Robots seen lately").get_by_role("link").first.focus()
        # What stands there now is marked: a renewal takes the mark away with the element.
        page.evaluate("document.activeElement.dataset.old = '1'")
        expect(page.locator("a[id^=robot-]:focus:not([data-old])")).to_have_count(1)
        page.get_by_role("link", name="Pause", exact=True).click()
        expect(page.get_by_role("link", name="Renew by itself", exact=True)).to_be_visible()
        expect(page.locator("[hx-trigger]")).to_have_count(0)
        assert console.complaints == []


def test_a_page_that_is_no_longer_renewed_says_so_until_it_is_again(
    chromium: Browser, stack: RunningStack, key: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key)
        page.route("**/console?window=*", lambda route: route.abort())
        expect(page.get_by_role("status")).to_contain_text("Not renewed")
        page.unroute("**/console?window=*")
        expect(page.get_by_role("status")).to_have_text("Renewed again.")


def test_a_press_that_lasts_over_a_renewal_still_opens_the_link(
    chromium: Browser, stack: RunningStack, key: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, f"/console/requests?robot_id={ROBOT}")
        page.get_by_role("row").filter(has_text=ROBOT).first.get_by_role("link").hover()
        page.mouse.down()
        # The second part is asked for when the first one is dealt with.
        for _ in range(2):
            with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true"):
                pass
        page.mouse.up()
        expect(page.get_by_role("heading", name="Request", exact=True, level=1)).to_be_visible()


def test_a_request_appears_by_itself_and_is_looked_into(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, "/console/requests")
        body = observation(910, robot_id="console-late")
        assert stack.post(body).status_code == 200
        page.get_by_role("row").filter(has_text="console-late").first.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Request", exact=True, level=1)).to_be_visible()
        expect(page.locator("q")).to_have_text(str(body["instruction"]))
        frame = page.get_by_role("img", name="What the camera base saw", exact=True)
        console.reload_until(lambda: frame.is_visible() and console.width_px(frame) == 224, "the frame did not come")
        expect(page.get_by_role("img", name=re.compile("^dx .* by step"))).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("on the device .* ms"))).to_be_visible()
        expect(page.get_by_role("region", name=re.compile("^Safety checks"))).to_contain_text("velocity")
        page.get_by_text("The same as a table", exact=True).click()
        expect(page.get_by_role("columnheader", name="gripper")).to_be_visible()
        assert console.complaints == []


def test_the_newest_request_of_a_robot_is_followed(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, f"/console/requests/newest?robot_id={ROBOT}")
        expect(page.get_by_role("heading", name="Newest request")).to_be_visible()
        body = observation(911, robot_id=ROBOT)
        assert stack.post(body).status_code == 200
        expect(page.get_by_text(str(body["request_id"]))).to_be_visible()
        assert console.complaints == []


def test_a_refused_request_says_why(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, f"/console/requests?robot_id={ROBOT}&code=invalid_instruction")
        page.get_by_role("row").filter(has_text="invalid instruction").first.get_by_role("link").click()
        expect(page.get_by_role("region", name="Answer")).to_contain_text("instruction")
        expect(page.get_by_role("region", name="Answer")).to_contain_text("HTTP 422")


def test_all_of_it_goes_by_keyboard(chromium: Browser, stack: RunningStack, key: str) -> None:
    """Login, skip link, fleet, a request, a stop, and its end, without a pointer."""
    with window(chromium, stack) as console:
        page = console.open("/console")
        keyboard = page.keyboard
        # The browser gives the field its focus a moment after the page is loaded.
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        keyboard.type(key)
        keyboard.press("Enter")
        console.arrive("Fleet")
        keyboard.press("Tab")
        assert console.focused() == "Skip to the content"
        console.tab_to("Requests")
        keyboard.press("Enter")
        console.arrive("Requests")
        console.tab_to("live-toggle")
        keyboard.press("Enter")
        expect(page.get_by_role("link", name="Renew by itself", exact=True)).to_be_visible()
        console.arrive("Requests")
        first = page.locator("tbody a").first.get_attribute("id")
        console.tab_to(str(first))
        keyboard.press("Enter")
        console.arrive("Request")
        console.tab_to("Stop and resume")
        keyboard.press("Enter")
        console.arrive("Stop and resume")
        console.tab_to("robot_id")
        keyboard.type("console-idle")
        console.tab_to("reason")
        keyboard.type("a person is in the cell")
        console.tab_to("stop-b")
        keyboard.press("Enter")
        stop = page.get_by_role("listitem", name="robot console-idle")
        expect(stop).to_contain_text("a person is in the cell")
        console.arrive("Stop and resume")
        console.tab_to(str(stop.get_by_role("link").get_attribute("id")))
        keyboard.press("Enter")
        console.arrive("Resume robot console-idle")
        console.tab_to("reason")
        keyboard.type("the cell is empty")
        keyboard.press("Enter")
        expect(page.get_by_text("robots get actions again")).to_be_visible()
        expect(stop).to_have_count(0)
        assert console.complaints == []


def test_a_robot_that_is_stopped_here_gets_no_actions_until_it_is_resumed(
    chromium: Browser, stack: RunningStack, key: str
) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key, "/console/control?robot_id=console-stopped")
        page.get_by_label("Why", exact=True).fill("tested")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_role("listitem", name="robot console-stopped")).to_be_visible()
        seeds = itertools.count(20_000)

        def status() -> int:
            return stack.post(observation(next(seeds), robot_id="console-stopped")).status_code

        stack.wait_for(lambda: status() == 423, "the stop does not hold")
        page.get_by_role("link", name="Resume robot console-stopped", exact=True).click()
        page.get_by_label("Why it may go on", exact=True).fill("tested")
        page.get_by_role("button", name="Resume", exact=True).click()
        expect(page.get_by_text("robots get actions again")).to_be_visible()
        stack.wait_for(lambda: status() == 200, "the robot does not go on")


def test_a_wrong_key_and_an_ended_session_are_told(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.open("/console/requests")
        page.get_by_label("Key", exact=True).fill("vla_nobodys1_" + "x" * 43)
        page.get_by_role("button", name="Log in", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("nobody has this key")
        log_in(page, key)
        expect(page.get_by_role("heading", name="Requests", exact=True, level=1)).to_be_visible()
        # The live part notices by itself, and the way back is kept.
        host = str(urlsplit(stack.api).hostname)
        page.context.add_cookies(
            [{"name": COOKIE, "value": "ended", "domain": host, "path": ROOT, "httpOnly": True, "sameSite": "Strict"}]
        )
        expect(page.get_by_text("Your session ended")).to_be_visible()
        expect(page.locator("input[name=next]")).to_have_value("/console/requests")


def test_no_script_of_the_page_can_read_the_session(chromium: Browser, stack: RunningStack, key: str) -> None:
    with window(chromium, stack) as console:
        page = console.log_in(key)
        assert page.evaluate("document.cookie") == ""
        (cookie,) = page.context.cookies(f"{stack.api}/console")
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/console")
        assert key not in cookie["value"]
        page.get_by_role("button", name="Log out", exact=True).click()
        page.get_by_role("heading", name="Log in", exact=True).wait_for()
        assert page.context.cookies(f"{stack.api}/console") == []


def test_a_script_that_gets_into_a_page_is_not_run(chromium: Browser, stack: RunningStack, key: str) -> None:
    hostile = "reach the <img src=x onerror=window.hacked=1><script>window.hacked=1</script> block"
    body = observation(912, robot_id=ROBOT, instruction=hostile)
    stack.post(body)
    with window(chromium, stack) as console:
        page = console.log_in(key, place_of(stack, str(body["request_id"])))
        expect(page.locator("q")).to_have_text(hostile)
        # Even markup that a page of ours would hold by mistake is stopped by its policy.
        page.evaluate(OWN_MISTAKE)
        assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_barrier_that_axe_finds(
    chromium: Browser, stack: RunningStack, key: str, request_id: str, scheme: str
) -> None:
    with window(chromium, stack, scheme=scheme) as console:
        console.open("/console/login?ended=1")
        found = {"login": console.barriers()}
        console.log_in(key)
        for path in [*PAGES, place_of(stack, request_id), "/console/nowhere", "/console/requests/nobodys"]:
            console.open(path)
            found[path] = console.barriers()
        assert {path: barriers for path, barriers in found.items() if barriers} == {}


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_fits_its_window_and_names_what_it_offers(
    chromium: Browser, stack: RunningStack, key: str, request_id: str, size: dict[str, int]
) -> None:
    with window(chromium, stack, size=size) as console:
        page = console.open("/console/login")
        assert console.overflow_px() == 0
        console.log_in(key)
        for path in [*PAGES, place_of(stack, request_id)]:
            console.open(path)
            console.hold_still()
            assert console.overflow_px() == 0, path
            # What a screen reader reads out of it: one first heading, and a name for whatever can be used.
            assert page.get_by_role("heading", level=1).count() == 1, path
            assert NAMELESS.findall(page.locator("body").aria_snapshot()) == [], path
            small = page.eval_on_selector_all(
                "button, select, input:not([type=hidden]):not([type=radio]), nav a, .button",
                "all => all.filter(e => e.offsetHeight && e.offsetHeight < 24).map(e => e.outerHTML)",
            )
            assert small == [], path
