"""The HTML report in a real headless Chromium: search, keys, themes, phones, print, no network."""

from __future__ import annotations

import shutil

import pytest
from pages import hostile_page, page, place, region, report

from onnxfuse.refusal import Code

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page; at the end nothing may have been requested, logged or thrown."""
    wrong, contexts = [], []

    def opened(text, width=1280, scheme="light", **options):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        address = path.as_uri()
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: wrong.append(r.url) if r.url.split("#")[0] != address else None)
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def many(count=6):
    kept = [place("1"), place("2", Code.STRIDE), place("3", Code.STRIDE)]
    return page(report([region(str(n)) for n in range(count)], kept))


SHOWN = "document.querySelectorAll('details.region:not([hidden])').length"


def until(tab, condition):
    """Waits from outside: the page's policy forbids to evaluate text inside."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"never came true: {condition}")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("make", [many, hostile_page])
def test_a_page_is_never_wider_than_its_window(visit, make, width):
    tab = visit(make(), width)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("window.hacked") is None


def test_search_filters_and_keys_work(visit):
    tab = visit(many())
    assert tab.evaluate(SHOWN) == 9
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.keyboard.type("conv3x3 sum4")
    until(tab, f"{SHOWN} === 1")
    assert tab.inner_text("#matches") == "1 of 9"
    assert tab.locator("details.reason:visible").count() == 0
    tab.fill("#search", "stride-mismatch")
    until(tab, f"{SHOWN} === 2")
    assert tab.locator("#f0-k1-").is_visible()
    tab.fill("#search", "no such thing")
    until(tab, f"{SHOWN} === 0")
    assert tab.locator("#none").is_visible()
    tab.keyboard.press("Escape")
    assert tab.evaluate(SHOWN) == 9
    assert tab.input_value("#search") == ""
    assert tab.evaluate("document.activeElement === document.body")


def test_search_is_quick_in_two_thousand_places(visit):
    text = page(report([], [place(str(n), list(Code)[n % 9]) for n in range(2000)]))
    tab = visit(text)
    took = tab.evaluate(
        """async () => {
            const start = performance.now();
            for (const words of ["kept1", "kept19", "kept1999", "cost", ""]) {
                search.value = words;
                search.dispatchEvent(new Event("input"));
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            }
            return performance.now() - start;
        }"""
    )
    assert tab.evaluate(SHOWN) == 2000
    assert took < 5000


def test_a_box_leads_to_its_name_which_can_be_copied(visit):
    tab = visit(many())
    tab.locator("#f0-r0- svg a", has_text="BN").first.click()
    assert tab.evaluate("location.hash") == "#n-0-r0-b2"
    item = tab.locator("#n-0-r0-b2")
    assert item.is_visible()
    assert item.locator("code").first.inner_text() == "bn0"
    item.get_by_role("button", name="Copy bn0").click()
    until(tab, "/Copied|Selected/.test(document.querySelector('#n-0-r0-b2 button').textContent)")


def test_a_link_into_what_is_closed_or_filtered_opens_it(visit):
    tab = visit(many())
    tab.fill("#search", "sum1")
    until(tab, f"{SHOWN} === 1")
    assert not tab.locator("#n-0-k2-b0").is_visible()
    tab.evaluate("location.hash = 'n-0-k2-b0'")
    tab.locator("#n-0-k2-b0").wait_for(state="visible")
    assert tab.input_value("#search") == ""


def test_dark_and_light_follow_the_system_and_the_button(visit):
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(many()), visit(many(), scheme="dark")
    pale, night = light.evaluate(back), dark.evaluate(back)
    assert pale != night
    light.get_by_role("button", name="Theme").click()
    assert light.evaluate(back) == pale
    light.get_by_role("button", name="Theme").click()
    assert light.evaluate(back) == night
    light.reload()
    assert light.evaluate(back) == night


def test_open_all_opens_and_closes(visit):
    tab = visit(many())
    state = "[...document.querySelectorAll('details')].filter((one) => one.open).length"
    tab.get_by_role("button", name="Open all").click()
    assert tab.evaluate(state) == tab.locator("details").count()
    tab.get_by_role("button", name="Close all").click()
    assert tab.evaluate(state) == 0


def test_a_print_shows_what_is_closed_and_restores_it(visit):
    tab = visit(many(), scheme="dark")
    body = tab.locator("#f0-r5- .body")
    assert not body.is_visible()
    assert tab.pdf().startswith(b"%PDF")
    assert not body.is_visible()
    tab.emulate_media(media="print")
    assert body.bounding_box()["height"] > 200
    assert not tab.locator("#search").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_page_works_without_scripts(visit):
    tab = visit(many(), java_script_enabled=False)
    assert not tab.locator("#search").is_visible()
    assert not tab.locator("#theme").is_visible()
    assert tab.locator("#f0-r0- svg").first.is_visible()
    tab.locator("#f0-r4- > summary").click()
    assert tab.locator("#n-0-r4-b0").is_visible()


def test_the_keyboard_reaches_regions_and_shows_where_it_is(visit):
    tab = visit(many())
    tab.keyboard.press("Tab")
    assert tab.inner_text(":focus") == "Skip to the results"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.locator("#f0-r3- > summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#f0-r3- .body").is_visible()
