"""The page in a real browser: what it shows, what it asks, keys, colours, sizes, what a screen reader gets.

PICTURES=folder keeps screenshots there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.cli import documents, results
from tests.support import browser
from tests.support.browser import Browser
from tests.support.fake_control import HANG, FakeControl, event
from tests.web.server import Dashboard, dashboard

pytest.importorskip("starlette", reason="the dashboard is an extra: pip install 'pyworker[web]'")
pytestmark = pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)
EVIL = "<img src=x onerror=alert(1)>"


def follow(request: Any) -> Iterator[Any]:
    if request.since_seq:  # what happened before the dashboard was there
        yield event("api", None, "app_note", text=EVIL)
        yield event("api", 3, "worker_recycled", generation=7, pid=41212, reason="memory 530 MB > 512 MB")
    yield HANG


class Daemon:
    """ps, with a number of workers that scale changes."""

    def __init__(self) -> None:
        self.workers = 4

    def ps(self, _request: Any) -> Iterator[Any]:
        document = documents.ps()
        document["apps"][0]["workers"] |= {"want": self.workers, "ready": self.workers}
        yield results.Reply(True, document)

    def scale(self, request: Any) -> Iterator[Any]:
        self.workers = int(request.changes["api"])
        yield results.reply("scaled", workers={"want": self.workers, "ready": self.workers})


class Page(NamedTuple):
    window: Browser
    board: Dashboard
    daemon: FakeControl

    def open(self) -> Browser:
        """The page from its start."""
        self.window.open("about:blank")
        self.window.open(self.board.url)
        self.window.wait("document.querySelectorAll('#apps li').length === 5")
        return self.window


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = str(tmp_path_factory.mktemp("page") / "state")
    os.makedirs(f"{home}/logs", mode=0o700)
    with open(f"{home}/logs/api.log", "w") as file:
        file.writelines(f"2026-11-23T14:02:31.104Z api.1 41210 out| INFO GET /{i}\n" for i in range(50))
        file.writelines(f"2026-11-23T14:02:32.104Z api.2 41211 err| {text}\n" for text in ("ERROR payment failed", "Traceback (most recent call last):", '  File "x.py"', f"Declined: {EVIL}"))
    made = Daemon()
    handlers = {"ps": made.ps, "follow": follow, "scale": made.scale, "reload": results.reload}
    with FakeControl(home, handlers) as daemon, dashboard(home) as board, browser.browser() as window:
        yield Page(window, board, daemon)


def keep(window: Browser, name: str) -> None:
    if folder := os.environ.get("PICTURES"):
        window.picture(os.path.join(folder, f"{name}.png"))


def test_what_it_shows(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#workers tbody tr').length === 4")
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.wait("document.querySelectorAll('#events li').length === 2")
    window.wait("document.querySelectorAll('#charts path.line')[0].getAttribute('d')", "a curve")
    assert "api" in window.text("#name")
    assert "4/4 workers" in window.text("#apps li")
    assert window.text("#workers tbody tr:nth-child(3)").split()[:3] == ["api.3", "●", "ready"]
    assert "memory 530 MB > 512 MB" in window.text("#events")
    assert window.script("return document.querySelectorAll('#charts figure').length") == 5
    assert "2 in trouble" in window.text("#daemon")
    # the token is in no address any more, and what apps say is text
    assert "token" not in window.script("return location.href")
    assert EVIL in window.text("#log")
    assert EVIL in window.text("#events")
    assert window.script("return document.querySelectorAll('#log img, #events img').length") == 0
    assert window.complaints() == []
    keep(window, "light")


def test_the_filter_shows_whole_records(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.type("#filter", "declined")
    window.wait("document.querySelectorAll('#log div').length === 4")
    assert "payment failed" in window.text("#log")
    window.wait("document.querySelector('#log mark')?.textContent === 'Declined'")
    window.script("document.getElementById('filter').value = ''")
    window.type("#filter", "/GET .1\\d/")
    window.wait("document.querySelectorAll('#log div').length === 10")


def test_keys_and_a_question_before_anything_is_done(page: Page) -> None:
    window = page.open()
    done = len([r for r in page.daemon.requests if type(r).__name__ == "Scale"])
    window.press("+")
    window.wait("document.getElementById('confirm').open")
    assert window.script("return document.getElementById('workers-wanted').value") == "5"
    keep(window, "question")
    window.press("\ue00c")  # Escape
    window.wait("!document.getElementById('confirm').open")
    window.wait("!document.getElementById('confirm').contains(document.activeElement)")  # a moment later
    assert len([r for r in page.daemon.requests if type(r).__name__ == "Scale"]) == done
    window.press("+")
    window.wait("document.getElementById('confirm').open")
    window.click("#yes")
    window.wait("document.getElementById('said').textContent.includes('5/5 workers ready')")
    window.wait("document.querySelector('#apps li').innerText.includes('5/5')")
    assert [r.changes for r in page.daemon.requests if type(r).__name__ == "Scale"][done:] == [{"api": "5"}]
    window.press("-")
    window.wait("document.getElementById('confirm').open")
    window.type("#workers-wanted", "\ue003\ue007")  # Backspace, Enter: no number is not 0
    assert window.script("return document.getElementById('confirm').open")
    window.type("#workers-wanted", "6\ue007")
    window.wait("document.querySelector('#apps li').innerText.includes('6/6')")
    assert [r.changes for r in page.daemon.requests if type(r).__name__ == "Scale"][done:] == [{"api": "5"}, {"api": "6"}]
    window.press("j")
    window.wait("document.getElementById('name').textContent.includes('admin')")
    window.press("/")
    assert window.script("return document.activeElement.id") == "filter"


def test_reload_with_the_mouse_says_how_it_went(page: Page) -> None:
    window = page.open()
    window.click('[data-act="reload"]')
    window.wait("document.getElementById('confirm').open")
    assert window.script("return document.activeElement.id") == "no"  # Enter alone does nothing
    window.click("#yes")
    window.wait("document.getElementById('said').textContent.includes('api reloaded')")


def test_a_failed_app_shows_why(page: Page) -> None:
    window = page.open()
    window.click("#apps li:nth-child(5) button")
    window.wait("document.getElementById('name').textContent.includes('mail')")
    assert "ModuleNotFoundError" in window.text("#failure")
    assert window.script("return getComputedStyle(document.querySelector('[data-act=start]')).display") != "none"
    assert window.text("#no-workers") == "no worker runs"
    assert window.text("#events") == "nothing has happened yet"


def test_what_ps_says_of_an_app_is_on_the_page_too(page: Page) -> None:
    window = page.open()
    # in one go: the next look at the daemon brings its own back
    failure, notes, facts, running = window.script("""
      const job = {...state.doc.apps[2], state: "scheduled", next_run_at: "2026-11-30T03:00:00.000Z", backoff: null, drops: 1,
        notes: ["waits for db, which failed"], last_failure: {message: "disk is full", traceback: "", hint: ""}};
      drawDetail(job);
      const texts = ["failure", "notes", "facts"].map((id) => document.getElementById(id).innerText);
      drawDetail(state.doc.apps[0]);
      return [...texts, document.getElementById("notes").hidden];""")
    assert failure.strip() == "failed at its last run: disk is full"
    assert notes == "waits for db, which failed\n1 line of its log could not be written → pyworker doctor"
    assert "next\u00a0run\u00a0" in facts
    assert running
    assert "try 3 of 10 in 4s" in window.script("drawDetail(state.doc.apps[3]); return document.getElementById('notes').innerText")


def test_a_key_does_nothing_that_its_button_does_not(page: Page) -> None:
    window = page.open()
    asked = window.script("""
      const asked = {};
      for (const app of state.doc.apps.slice(-2)) {
        choose(app.name);
        for (const key of ["r", "+"]) {
          document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
          asked[app.name + key] = document.getElementById("confirm").open;
          document.getElementById("confirm").close();
        }
      }
      return asked;""")
    assert asked == {"hooksr": True, "hooks+": True, "mailr": False, "mail+": False}


def test_a_line_that_came_in_parts_is_one_line(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.script("""
      const part = (worker, msg, partial) => ({ts: '', worker, pid: worker, stream: 'out', msg, partial});
      addLines([part(1, 'loading… ', true), part(2, 'other', false)]);
      addLines([part(1, 'done', false), part(1, 'next', false)]);""")
    window.wait("document.querySelectorAll('#log div').length === 57")
    assert window.script("return state.lines.slice(-3).map((line) => line.msg)") == ["loading… done", "other", "next"]


@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (768, False), (1280, True), (2200, False)])
def test_no_width_scrolls_sideways_and_dark_is_dark(page: Page, width: int, dark: bool) -> None:
    page.window.emulate(width=width, height=900, dark=dark)
    window = page.open()
    window.wait("document.querySelectorAll('#workers tbody tr').length === 4")
    assert window.script("return document.documentElement.scrollWidth") <= width
    shade = window.script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (int(shade.split("(")[1].split(",")[0]) < 60) is dark
    window.press("k")  # the last one, which a phone has out of sight
    window.wait("document.querySelector('#apps [aria-current=true]').getBoundingClientRect().right <= innerWidth")
    if width < 500:  # big enough for a thumb
        assert window.script("return document.querySelector('[data-act=reload]').offsetHeight") >= 44
    keep(window, f"{width}-{'dark' if dark else 'light'}")
    page.window.emulate(width=1280, height=900)


def test_on_paper_the_table_and_the_events_are_whole(page: Page) -> None:
    page.window.emulate(width=720, height=900, media="print")
    window = page.open()
    window.wait("document.querySelectorAll('#workers tbody tr').length === 4")
    window.script("state.events = Array(100).fill(state.events[0]); drawEvents()")
    for css in ("#events", "#workers"):
        cut = f"const box = document.querySelector('{css}').closest('#events, .scroll'); return box.scrollWidth > box.offsetWidth || box.scrollHeight > box.offsetHeight"
        assert not window.script(cut), css
    page.window.emulate(width=1280, height=900)


def test_a_screen_reader_gets_names_for_everything(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#charts path.line')[0].getAttribute('d')", "a curve")
    tree = window.accessibility()
    for role in ("button", "textbox", "searchbox", "checkbox", "image", "table", "list", "navigation", "log"):
        nameless = [node for node in tree if node["role"] == role and not node["name"].strip()]
        assert not nameless or role == "list", (role, nameless)
    images = [node["name"] for node in tree if node["role"] in {"image", "img"}]
    assert any(name.startswith("CPU: ") and "now" in name for name in images), images
    headings = window.script("return [...document.querySelectorAll('h1,h2,h3')].filter(h => h.offsetParent).map(h => h.tagName)")
    assert headings[0] == "H1"
    assert window.script("return document.documentElement.lang") == "en"
    assert window.script("return document.querySelectorAll('[aria-live=polite]').length") >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Page, scheme: str) -> None:
    page.window.emulate(width=1280, height=900, dark=scheme == "dark")
    window = page.open()
    window.wait("document.querySelectorAll('#workers tbody tr').length === 4")
    worst = window.script("""
      const parse = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; })
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const back = (n) => { for (; n; n = n.parentElement) { const c = parse(getComputedStyle(n).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
      let worst = [99, ""];
      for (const n of document.querySelectorAll("body *")) {
        if (!n.offsetParent || ![...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim()) || n.disabled) continue;
        const a = light(parse(getComputedStyle(n).color)), b = light(back(n));
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < worst[0]) worst = [ratio, n.outerHTML.slice(0, 200)];
      }
      return worst;""")
    assert worst[0] >= 4.5, worst
    page.window.emulate(width=1280, height=900)


def test_the_keyboards_place_is_not_lost_with_a_button(page: Page) -> None:
    window = page.open()
    window.script("document.querySelector('[data-act=reload]').focus()")
    window.press("\ue007")  # Enter
    window.wait("document.getElementById('confirm').open")
    window.click("#yes")
    window.wait("document.getElementById('said').textContent.includes('api reloaded')")
    window.wait("document.activeElement.dataset.act === 'reload'")


def test_a_screen_reader_is_not_told_the_uptime_every_second(page: Page) -> None:
    window = page.open()
    live = "document.getElementById(%r).closest('[aria-live=polite], [role=status], [role=alert]')"
    assert window.script(f"return {live % 'daemon'} !== null")
    assert "up " in window.text("#uptime")
    assert window.script(f"return {live % 'uptime'} === null")


def test_many_apps_can_be_searched_and_leave_the_chosen_one_in_sight(page: Page) -> None:
    window = page.open()
    assert window.script("return document.getElementById('find').hidden")  # five are seen at once
    # in one go: the next look at the daemon brings its five back
    first, name, trouble, top = window.script("""
      state.doc = {...state.doc, apps: [...Array(40).keys()].map((i) => ({...state.doc.apps[i % 5], name: "app-" + i}))};
      draw();
      choose("app-39");
      const top = document.getElementById("name").getBoundingClientRect().top;
      const seen = (text) => {
        document.getElementById("find").value = text;
        draw();
        return [...document.querySelectorAll("#apps li:not([hidden])")].map((li) => li.dataset.app);
      };
      return [seen(""), seen("app-3"), seen("TROUBLE"), top];""")
    assert first == [f"app-{i}" for i in range(40)]
    assert name == ["app-3", *(f"app-{i}" for i in range(30, 40))]
    assert len(trouble) == 16
    assert top >= 0


def test_a_flood_leaves_what_the_filter_looks_for(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.type("#filter", "declined")
    window.wait("document.querySelectorAll('#log div').length === 4")
    window.script("for (let i = 0; i < 9; i++) addLines(Array(1000).fill({ts: '', worker: 1, pid: 1, stream: 'out', msg: 'noise'})); addLines([{skipped: 5e6}])")
    window.wait("document.querySelectorAll('#log div').length === 5")
    assert "payment failed" in window.text("#log")
    assert "5 MB left out" in window.text("#log .skipped")
    assert window.script("return state.lines.length") <= 6000


def test_a_log_that_is_not_followed_stays_as_it_is(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.click("#follow")
    window.script("addLines([{ts: '', worker: 1, pid: 1, stream: 'out', msg: 'one more'}]); window.late = false; setTimeout(() => { window.late = true; }, 2 * DRAW_LOG)")
    window.wait("window.late")
    assert window.script("return document.querySelectorAll('#log div').length") == 54
    window.click("#follow")
    window.wait("document.getElementById('log').innerText.includes('one more')")


def test_a_wrong_token_asks_for_the_right_one(page: Page) -> None:
    window = page.window
    window.open("about:blank")
    window.open(page.board.url.partition("#")[0] + "#token=wrong")
    window.wait("!document.getElementById('ask-token').hidden")
    assert window.script("return document.getElementById('main').hidden")
    assert "not the right one" in window.text("#token-wrong")
    assert window.text("#banner") == ""
    window.type("#token", page.board.token + "\ue007")  # Enter
    window.wait("document.querySelectorAll('#apps li').length === 5")


def test_the_printed_address_is_taken_where_the_page_is_open_already(page: Page) -> None:
    window = page.window
    window.open("about:blank")
    window.open(page.board.url.partition("#")[0] + "#token=wrong")
    window.wait("!document.getElementById('ask-token').hidden")
    window.open(page.board.url)  # only what is behind # differs: nothing is loaded anew
    window.wait("document.querySelectorAll('#apps li').length === 5")
    assert "token" not in window.script("return location.href")


def test_a_browser_from_before_2024_hears_the_server(page: Page) -> None:
    window = page.open()
    window.script("AbortSignal.any = undefined; choose('admin'); choose('api')")
    window.wait("document.querySelectorAll('#log div').length === 54")


def test_a_server_that_hangs_is_not_shown_as_one_that_has_no_news(page: Page) -> None:
    window = page.open()
    page.board.process.send_signal(signal.SIGSTOP)
    try:
        window.script("const now = Date.now; Date.now = () => now() + 3600e3")  # a machine that has slept
        window.wait("!document.getElementById('banner').hidden")
        assert "does not answer" in window.text("#banner")
    finally:
        page.board.process.send_signal(signal.SIGCONT)
    window.wait("document.getElementById('banner').hidden")


def test_the_charts_go_by_the_clock_of_the_server(page: Page) -> None:
    window = page.open()
    window.script("const now = Date.now; Date.now = () => now() - 3600e3")
    window.wait("state.ahead < -3000")
    window.wait("document.querySelectorAll('#charts path.line')[0].getAttribute('d')", "a curve")
    box, curve = window.script("""draw();
      return [document.querySelector("#charts svg"), document.querySelector("#charts path.line")].map((n) => n.getBoundingClientRect().right)""")
    assert curve <= box + 1


def test_what_is_marked_in_the_log_stays_to_be_copied(page: Page) -> None:
    window = page.open()
    window.wait("document.querySelectorAll('#log div').length === 54")
    window.script("""
      getSelection().selectAllChildren(document.querySelector("#log div:last-child"));
      addLines([{ts: '', worker: 1, pid: 1, stream: 'out', msg: 'one more'}]);
      window.late = false; setTimeout(() => { window.late = true; }, 2 * DRAW_LOG)""")
    window.wait("window.late")
    assert "Declined" in window.script("return getSelection().toString()")
    window.script("getSelection().removeAllRanges(); addLines([])")
    window.wait("document.getElementById('log').innerText.includes('one more')")


def test_keys_work_after_a_checkbox_was_clicked(page: Page) -> None:
    window = page.open()
    window.click("#errors")
    window.press("j")
    window.wait("document.getElementById('name').textContent.includes('admin')")
