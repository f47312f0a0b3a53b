"""Pages in a real browser: phone and desktop, light and dark, without script, on paper."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hf_relopt.report.compare_page import compare_page
from hf_relopt.report.page import write_page
from hf_relopt.report.run_files import read_run
from hf_relopt.report.run_page import run_page
from tests.report import written
from tests.report.browser import DESKTOP, PHONE

LONG = "a-run-with-a-very-long-name-" * 4

# Elements that reach out of the window; what scrolls in a box of its own may.
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest(".table, .cells, .curves, script, .cursor")
    && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 120))"""

# The contrast of each text with what lies behind it, as WCAG defines it.
CONTRASTS = """(() => {
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = parts(c).slice(0, 3).map(v => {
    v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (parts(c).length === 3 || parts(c)[3] > 0) return c; } return "rgb(255, 255, 255)"; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("script, style") || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), colour = e.tagName === "text" ? style.fill : style.color;
    const [a, b] = [light(colour), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.outerHTML.slice(0, 100)]);
  }
  return found;
})()"""


@pytest.fixture(params=["report", "compare", "stock"])
def page(request, whole_run, tmp_path, trained):
    """Pages with much and with little on them."""
    path = tmp_path / f"{request.param}.html"
    if request.param == "report":
        write_page(run_page(read_run(whole_run)), path)
    elif request.param == "stock":
        write_page(run_page(read_run(trained / "adamw")), path)
    else:
        log = written.trainer_state([{"step": step, "loss": 9.0 / step} for step in range(1, 40)])
        written.write_json(tmp_path / LONG / "trainer_state.json", log)
        runs = [whole_run, trained / "relopt", trained / "adamw", tmp_path / LONG]
        write_page(compare_page([read_run(run) for run in runs]), path)
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_page_fits_asks_for_nothing_and_can_be_read(tab, page, width, dark):
    tab.open(page, width=width, dark=dark)
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(OUTSIDE) == []
    assert tab.requests == [page.as_uri()] and tab.errors == []
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [each for each in contrasts if each[0] < 4.5] == []
    brightness = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(brightness) < 60) == dark


def test_the_heat_map_has_one_cell_per_layer_and_logged_step(tab, whole_run, tmp_path):
    path = tmp_path / "report.html"
    write_page(run_page(read_run(whole_run)), path)
    cells = "document.querySelectorAll('#relative_update_by_layer .plot .cells rect')"
    for script in (True, False):
        tab.open(path, script=script)
        # The protocol reads a page's state even where the page itself may run nothing.
        assert tab.evaluate(f"{cells}.length") == 18 * 30
        sizes = tab.evaluate(
            f"[...{cells}].map(c => c.getBoundingClientRect()).map(b => [b.width, b.height])"
        )
        assert min(min(size) for size in sizes) > 8
        fills = tab.evaluate(
            f"[...new Set([...{cells}].map(c => getComputedStyle(c).fill))].length"
        )
        assert fills == 16
        text = tab.evaluate("document.body.innerText")
        for words in ("Relative update by layer", "h.0.attn.c_attn.weight", "82 % of entries"):
            assert words in text or words in tab.evaluate("document.body.textContent")


def test_values_are_shown_under_the_pointer_and_by_the_keyboard(tab, whole_run, tmp_path):
    path = tmp_path / "report.html"
    write_page(run_page(read_run(whole_run)), path)
    tab.open(path)
    readout = "document.querySelector('#{} .readout').textContent"
    tab.evaluate("document.querySelector('#loss .plot > svg').focus()")
    tab.press("End")
    assert tab.evaluate(readout.format("loss")).startswith("step 60 · training ")
    tab.press("ArrowLeft")
    assert tab.evaluate(readout.format("loss")).startswith("step 58 · training ")
    tab.press("Escape")
    assert tab.evaluate(readout.format("loss")).strip() == ""
    x, y = tab.evaluate("""(() => {
        const s = document.querySelector('#relative_update_by_layer .plot > svg');
        s.scrollIntoView({block: "center"}); const b = s.getBoundingClientRect();
        return [b.left + 1, b.top + 1]; })()""")
    tab.point(x, y)
    assert tab.evaluate(readout.format("relative_update_by_layer")).startswith(
        "wte.weight · step 2 · relative update 0.0"
    )
    assert tab.errors == []


def test_everything_has_a_name_and_an_order(tab, page):
    tab.open(page)
    heads = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert heads[0] == 1 and heads.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(heads))
    unnamed = "[...document.querySelectorAll('svg:not([aria-hidden]):not(svg svg), [role=region]')]"
    assert tab.evaluate(f"{unnamed}.filter(e => !e.getAttribute('aria-label')).length") == 0
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    assert tab.evaluate("document.documentElement.lang") == "en"


def test_on_paper_a_page_is_light_and_whole(tab, page):
    tab.open(page, dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    tab.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = tab.pdf()
    assert printed.startswith(b"%PDF") and len(printed) > 20_000


def test_the_browser_sees_requests_errors_and_what_does_not_fit(tab, tmp_path):
    """Otherwise the tests above could not fail."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<p style='width:2000px;color:#ccc'>wide</p><img src='http://elsewhere.test/a.png'>"
        "<script>console.error('no'); missing()</script>"
    )
    tab.open(path, width=PHONE)
    assert tab.requests == [path.as_uri(), "http://elsewhere.test/a.png"]
    assert len(tab.errors) >= 2 and tab.evaluate(OUTSIDE) != []
    assert min(tab.evaluate(CONTRASTS))[0] < 2


def test_nothing_that_slips_into_a_page_is_asked_for(tab, tmp_path, trained):
    """The page's policy holds even where a file's text would become markup."""
    path = tmp_path / "page.html"
    text = run_page(read_run(trained / "adamw"))
    path.write_text(text.replace("<main>", "<main><img src='http://elsewhere.test/a.png'>"))
    tab.open(path)
    assert tab.evaluate("document.images[0].naturalWidth") == 0
    assert any("Content Security Policy" in error for error in tab.errors)
