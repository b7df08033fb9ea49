"""The timeline in a real browser: it renders, zooms, and its figures are right."""

import json

import pytest
from browser import Browser, find_browser

from fastjob.recorder import Recorder

MS = 1_000_000
SHIFT, CONTROL = 8, 2
LANES = "document.getElementById('lanes')"
BUSY = {"light": [0x1F, 0x77, 0xB4], "dark": [0x4A, 0x94, 0xD4]}


@pytest.fixture
def browser(tmp_path):
    if find_browser() is None:
        pytest.skip("needs a browser: apt-get install chromium")
    made = Browser(tmp_path)
    yield made
    made.close()


@pytest.fixture
def page(tmp_path):
    """A page of two workers; the time of the first batch's begin is the call's."""
    made = Recorder(tmp_path / "run.html")
    call = made.begin_call("processes", 2, 22)
    t = call.start_ns
    for i in range(10):
        call.batch(1_000_001, t + 10 * i * MS, t + (10 * i + 8) * MS, 2, 2 * i)
    call.batch(1_000_002, t, t + 50 * MS, 1, 20, pickle_ns=3 * MS, bytes_out=2_500_000)
    call.batch(1_000_002, t + 60 * MS, t + 90 * MS, 1, 21)
    call.event("death", 1_000_002, t + 90 * MS, "killed <i>by</i> SIGKILL")
    call._end_ns = t + 100 * MS
    made._end_call(call)
    made.write()
    return made


def view(browser):
    """First and last time shown, in ns, and how many batches were drawn."""
    browser.drawn()
    shown = browser.run(f"({{...{LANES}.dataset}})")
    return float(shown["from"]), float(shown["to"]), int(shown["drawn"])


def table(browser, name):
    return browser.run(
        f"[...document.querySelectorAll('#{name} tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )


def said(browser):
    return browser.run("document.getElementById('said').textContent")


def pixel(browser, time, lane):
    """Colour of a point of the lanes, given as a time after the call's begin."""
    return browser.run(
        f"(() => {{ const x = toX(origin + {time}), y = {lane} * height + height / 2;"
        f" return [...{LANES}.getContext('2d').getImageData(x, y, 1, 1).data]"
        ".slice(0, 3); })()"
    )


def point(browser, time, lane):
    """Where that is in the window."""
    return browser.run(
        f"(() => {{ const box = {LANES}.getBoundingClientRect();"
        f" const y = {lane} * height + height / 2;"
        f" return [box.left + toX(origin + {time}), box.top + y]; }})()"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_with_the_right_figures(browser, page, scheme):
    browser.open(page.path, scheme=scheme)
    data = page.data()
    start, end, drawn = view(browser)
    assert (start, end) == (data["calls"][0]["start"], data["calls"][0]["end"])
    assert drawn == 12
    assert browser.run("document.getElementById('overview').textContent") == (
        "22 tasks in 12 batches and 1 call took 100 ms on 2 workers, which ran tasks "
        "for 80% of that time."
    )
    assert browser.run(
        "[...document.querySelectorAll('#reasons li')].map(item => item.textContent)"
    ) == [
        (f"{reason['share']:.0%}" if reason["share"] else "") + reason["text"]
        for reason in data["summary"][1:]
    ]
    assert browser.run(
        "[...document.querySelectorAll('#legend li')].map(item => item.textContent)"
    ) == [
        "running tasks 80%, 160 ms",
        "between batches 14%, 28 ms",
        "after the last task 6%, 12 ms",
    ]
    assert table(browser, "workers") == [
        ["process 1000001", "20", "10", "80 ms", "4 ms"],
        ["process 1000002", "2", "2", "80 ms", "40 ms"],
    ]
    assert [row[:2] for row in table(browser, "longest")] == [
        ["20", "50 ms"],
        ["21", "30 ms"],
    ]
    assert table(browser, "calls")[0][1:4] == ["processes", "2", "22"]
    assert [row[-1] for row in table(browser, "events")] == ["killed <i>by</i> SIGKILL"]
    assert pixel(browser, 7 * MS, 0) == BUSY[scheme]
    assert pixel(browser, 9 * MS, 0) != BUSY[scheme]
    assert pixel(browser, 45 * MS, 1) == BUSY[scheme]
    assert pixel(browser, 55 * MS, 1) != BUSY[scheme]
    assert browser.messages == []


def test_the_page_zooms_by_buttons_wheel_and_double_click(browser, page):
    browser.open(page.path)
    begin, end, _ = view(browser)
    browser.run("document.getElementById('in').click()")
    start, stop, _ = view(browser)
    assert stop - start == pytest.approx((end - begin) / 2)
    browser.run("document.getElementById('out').click()")
    assert view(browser)[:2] == pytest.approx((begin, end))
    x, y = point(browser, 20 * MS, 0)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400, modifiers=CONTROL)
    start, stop, drawn = view(browser)
    assert stop - start < (end - begin) / 2
    assert drawn < 12
    # The time under the pointer stays under the pointer.
    assert point(browser, 20 * MS, 0)[0] == pytest.approx(x, abs=1)
    browser.run("document.getElementById('all').click()")
    assert view(browser) == (begin, end, 12)
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x, y, button="left", clickCount=count)
    start, stop, _ = view(browser)
    assert stop - start == pytest.approx((end - begin) / 4)
    assert browser.messages == []


def test_the_wheel_alone_is_left_to_the_page(browser, page):
    browser.open(page.path, height=400)
    before = view(browser)
    assert browser.run(
        f"{LANES}.dispatchEvent(new WheelEvent('wheel',"
        " {deltaY: 100, cancelable: true, bubbles: true}))"
    )
    assert view(browser) == before


def test_dragging_moves_the_view_within_its_bounds(browser, page):
    browser.open(page.path)
    begin, _, _ = view(browser)
    browser.run("document.getElementById('in').click()")
    start, stop, _ = view(browser)
    x, y = point(browser, 50 * MS, 0)
    browser.mouse("mousePressed", x, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", x + 100, y, button="left", buttons=1)
    moved = view(browser)
    assert moved[0] < start
    assert moved[1] - moved[0] == pytest.approx(stop - start)
    browser.mouse("mouseMoved", x + 5000, y, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 5000, y, button="left", clickCount=1)
    assert view(browser)[0] == begin


def test_everything_can_be_read_by_keyboard(browser, page):
    browser.open(page.path)
    begin, end, _ = view(browser)
    browser.run(f"{LANES}.focus()")
    browser.press("ArrowRight")
    assert said(browser).startswith("2 tasks from 0 in 1 batch on process 1000001")
    browser.press("ArrowRight")
    assert said(browser).startswith("2 tasks from 2 in 1 batch")
    browser.press("ArrowDown")
    lines = said(browser).split("\n")
    assert lines[0] == "Task 20 on process 1000002, call 1"
    assert lines[1].endswith("for 50 ms")
    assert lines[2:] == ["pickling 3 ms", "sent 2.5 MB, received 0 bytes"]
    browser.press("Enter")
    start, stop, _ = view(browser)
    assert stop - start == pytest.approx(60 * MS)  # with a margin
    browser.press("ArrowRight")
    assert said(browser).startswith("Task 21")
    browser.press("0")
    assert view(browser)[:2] == (begin, end)
    browser.press("+")
    start, stop, _ = view(browser)
    assert stop - start == pytest.approx((end - begin) / 2)
    browser.press("ArrowLeft", SHIFT)
    assert view(browser)[0] < start
    browser.press("-")
    browser.press("ArrowUp")
    assert "process 1000001" in said(browser)
    browser.press("Escape")
    assert said(browser).startswith("Choose a batch")
    assert browser.messages == []


def test_pointing_at_a_batch_or_a_death_shows_what_is_known(browser, page):
    browser.open(page.path)
    tip = "document.getElementById('tip')"
    browser.mouse("mouseMoved", *point(browser, 25 * MS, 1))
    assert browser.run(f"{tip}.textContent").startswith("Task 20 on process 1000002")
    assert not browser.run(f"{tip}.hidden")
    browser.mouse("mouseMoved", *point(browser, 90 * MS, 1))
    assert browser.run(f"{tip}.textContent").endswith("killed <i>by</i> SIGKILL")
    browser.mouse("mouseMoved", *point(browser, 55 * MS, 1))
    assert browser.run(f"{tip}.hidden")
    x, y = point(browser, 25 * MS, 1)
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, x, y, button="left", clickCount=1)
    assert said(browser).startswith("Task 20")


def test_the_theme_can_be_changed(browser, page):
    browser.open(page.path)
    browser.run("document.getElementById('theme').click()")
    browser.drawn()
    assert pixel(browser, 7 * MS, 0) == BUSY["dark"]
    assert browser.run("document.getElementById('theme').textContent") == "Light"


def test_a_page_of_many_workers_and_batches_is_drawn(browser, tmp_path):
    made = Recorder(tmp_path / "run.html")
    call = made.begin_call("processes", 64, None)
    for i in range(19_000):
        start = call.start_ns + (i // 64) * MS
        call.batch(1_000_000 + i % 64, start, start + MS - 1000, 3, 3 * i)
    call._end_ns = call.start_ns + 300 * MS
    made._end_call(call)
    made.write()
    browser.open(made.path)
    assert view(browser)[2] == 19_000
    assert len(table(browser, "workers")) == 64
    assert pixel(browser, 100.5 * MS, 63) == BUSY["light"]
    assert browser.messages == []


def test_a_page_without_a_task_is_a_page(browser, tmp_path):
    made = Recorder(tmp_path / "run.html")
    made.write()
    browser.open(made.path)
    assert browser.run("document.getElementById('overview').textContent") == (
        "No task was recorded."
    )
    browser.run(f"{LANES}.focus()")
    for key in ("ArrowRight", "ArrowDown", "Enter", "+", "0"):
        browser.press(key)
    assert browser.messages == []


def test_a_complaint_of_the_page_would_be_seen(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>nothing()</script>")
    browser.open(path)
    found = json.dumps(browser.messages)
    assert "nothing is not defined" in found
    assert "request to http://127.0.0.1:9/x.png" in found
