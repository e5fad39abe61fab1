"""The page in a real browser: what it shows, for whom it works, and what an operator does there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect, sync_playwright
from playwright.sync_api import Page as Tab

from fedpdpo.v1 import federation_pb2 as pb
from processes import until
from serving import Client, connected, tensors
from watched import Page, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

expect.set_options(timeout=30_000)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Page]:
    with page(tmp_path) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, served: Page) -> Iterator[Tab]:
    """The page, opened; nothing may come from elsewhere or fail in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    failed: list[str] = []
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.on("request", lambda request: failed.append(request.url)
              if not request.url.startswith(served.url) else None)  # fmt: skip
    opened.goto(served.url)
    expect(opened.locator("#phase")).to_have_text("training")
    yield opened
    context.close()
    assert not failed


def test_it_shows_the_run_and_keeps_up_with_it(tab: Tab, served: Page) -> None:
    expect(tab.locator("#done-told")).to_have_text("adapter 2 of 5")
    expect(tab.locator("#waiting")).to_have_text("waiting for deltas of ada, bea")
    expect(tab.locator("#spread")).to_contain_text("worst 70.0 % (ada), best 80.0 % (bea)")
    expect(tab.locator("#clients tbody tr")).to_have_count(2)
    expect(tab.locator("#rounds tbody tr")).to_have_count(3)
    tab.get_by_label("Show round 1 by client").click()
    expect(tab.locator("#parts tbody tr")).to_have_count(2)
    with connected(served.grpc_port) as (stub, _):
        for name in ("ada", "bea"):
            Client(stub, name).push(3, tensors(0.01))
    expect(tab.locator("#done-told")).to_have_text("adapter 3 of 5")
    expect(tab.locator("#events li").first).to_contain_text("round opened round=4")


def test_each_reward_is_drawn_and_told_as_a_table(tab: Tab) -> None:
    chart = tab.locator("#chart svg")
    label = "Accuracy of the combined reward over 3 adapters; personalised mean now 75.0 %"
    expect(chart).to_have_attribute("aria-label", label)
    expect(chart.locator("path.personalized")).to_have_count(1)
    expect(chart.locator("path.client")).to_have_count(2)
    tab.get_by_label("explicit").check()
    expect(chart).to_have_attribute("aria-label", label.replace("combined", "explicit"))
    tab.get_by_text("The same as a table").click()
    expect(tab.locator("#accuracies tbody tr").first).to_contain_text(
        "75.0 %70.0 %, ada80.0 %, bea"
    )


def test_what_a_client_says_is_shown_as_text(tab: Tab, served: Page) -> None:
    with connected(served.grpc_port) as (stub, _):
        client = Client(stub, "ada")
        stub.Heartbeat(
            pb.HeartbeatRequest(run_id=client.run_id, client_id="ada",
                                activity="<img src=x onerror=alert(1)>", progress=0.5)
        )  # fmt: skip
    expect(tab.locator("#clients tbody tr").first).to_contain_text("<img src=x onerror=alert(1)>")
    assert tab.locator("#clients img").count() == 0


def test_an_operator_pauses_resumes_and_stops_by_keyboard(tab: Tab, served: Page) -> None:
    tab.get_by_label("Operator's token").focus()
    tab.keyboard.type(served.client)
    tab.keyboard.press("Enter")
    expect(tab.locator("#operator-told")).to_contain_text("a client's, not an operator's")
    expect(tab.locator("#actions")).to_be_hidden()
    tab.keyboard.type(served.operator)
    tab.keyboard.press("Enter")
    expect(tab.locator("#operator-told")).to_have_text("You are operator a-operator.")
    for button, phase in (("Pause", "training, paused"), ("Resume", "training")):
        tab.get_by_role("button", name=button).press("Enter")
        expect(tab.locator("#phase")).to_have_text(phase)
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Stop the run").press("Enter")
    expect(tab.locator("#phase")).to_have_text("stopped")
    with connected(served.grpc_port) as (stub, _):
        for name in ("ada", "bea"):
            Client(stub, name).leave()
    expect(tab.locator("#connection")).to_have_text("the server has ended")


def test_the_focus_stays_where_it_was_when_tables_change(tab: Tab, served: Page) -> None:
    button = tab.get_by_label("Show round 2 by client")
    button.focus()
    with connected(served.grpc_port) as (stub, _):
        for name in ("ada", "bea"):
            Client(stub, name).push(3, tensors(0.01))
    expect(tab.locator("#done-told")).to_have_text("adapter 3 of 5")
    expect(button).to_be_focused()


#: Answers of the events' path are held back until the page is told to go on.
HELD = """
const ask = window.fetch;
const held = new Promise((go) => { window.goOn = go; });
window.asked = 0;
window.fetch = async (path) => {
  if (!path.startsWith("/api/events")) return ask(path);
  window.asked += 1;
  const answer = await ask(path);
  await held;
  return answer;
};
"""


def test_events_come_once_however_slow_the_answer_is(tab: Tab, served: Page) -> None:
    tab.add_init_script(HELD)
    tab.reload()
    until(lambda: tab.evaluate("window.asked > 0"), "the page asks")
    with connected(served.grpc_port) as (stub, _):
        for name in ("ada", "bea"):
            Client(stub, name).push(3, tensors(0.01))
    expect(tab.locator("#done-told")).to_have_text("adapter 3 of 5")
    assert tab.evaluate("window.asked") == 1
    tab.evaluate("window.goOn()")
    opened = tab.locator("#events li", has_text="round opened")
    expect(opened.first).to_contain_text("round=4")
    expect(opened).to_have_count(4)


def test_the_page_listens_again_after_an_answer_that_is_none(tab: Tab) -> None:
    tab.route("**/api/live", lambda route: route.fulfill(status=502), times=1)
    tab.reload()
    expect(tab.locator("#connection")).to_have_text("the server is away; asking again")
    expect(tab.locator("#phase")).to_have_text("training")
    expect(tab.locator("#connection")).to_have_text("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_screen(
    tab: Tab, scheme: str, width: int
) -> None:
    tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    tab.set_viewport_size({"width": width, "height": 800})
    tab.get_by_label("Show round 1 by client").click()
    expect(tab.locator("#parts tbody tr")).to_have_count(2)
    found = Axe().run(tab).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
