"""The page in a browser: silent, still, no wider than the window, readable in the dark."""

import shutil
from pathlib import Path

import pytest
from example import realistic, small
from hostile import hostile

from vestige.report import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
REPORTS = {"small": small, "realistic": realistic, "hostile": hostile}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        instance = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield instance
        instance.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in REPORTS.items():
        (folder / f"{name}.html").write_text(render(make()), encoding="utf-8")
    return folder


class Visit:
    """One page, with everything it asked for or complained about."""

    def __init__(self, browser, path: Path, width=1400, scheme="light"):
        size = {"width": width, "height": 900}
        self.context = browser.new_context(offline=True, viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.context.close()

    def run(self, script):
        return self.page.evaluate(script)


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_silent_and_no_wider_than_the_window(browser, pages, name, width, scheme):
    with Visit(browser, pages / f"{name}.html", width, scheme) as visit:
        visit.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert visit.run("document.documentElement.scrollWidth <= innerWidth")
        assert visit.run("document.body.scrollWidth <= innerWidth")
        assert visit.complaints == []
        fetched = [url for url in visit.requests if not url.startswith("data:")]
        assert fetched == [(pages / f"{name}.html").as_uri()]
        assert visit.run("window.pwned === undefined")


def test_the_policy_stops_what_slips_through(browser, pages, tmp_path):
    spoiled = (pages / "small.html").read_text()
    spoiled = spoiled.replace("</main>", "<script>window.pwned=1</script></main>")
    (tmp_path / "spoiled.html").write_text(spoiled)
    with Visit(browser, tmp_path / "spoiled.html") as visit:
        assert visit.run("window.pwned === undefined")
        assert any("Content Security Policy" in text for text in visit.complaints)


def test_the_skip_link_comes_first(browser, pages):
    with Visit(browser, pages / "small.html") as visit:
        visit.page.keyboard.press("Tab")
        assert visit.run("document.activeElement.className") == "skip"
        assert visit.run("document.activeElement.getBoundingClientRect().left >= 0")
        visit.page.keyboard.press("Enter")
        assert visit.run("document.activeElement.id") == "verdict"


def test_tables_scroll_by_keyboard_on_a_telephone(browser, pages):
    with Visit(browser, pages / "realistic.html", 400) as visit:
        region = "document.querySelector('#rates .scroll')"
        assert visit.run(f"{region}.scrollWidth > {region}.clientWidth")
        visit.run(f"{region}.focus()")
        for _ in range(5):
            visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_function(f"{region}.scrollLeft > 0", timeout=5000)


CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => [0.2126, 0.7152, 0.0722].reduce((s, w, i) => s + w * channel(rgb[i]), 0);
  const rgba = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  document.querySelectorAll('details').forEach(d => d.open = true);
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || style.display === 'none') continue;
    const inside = e.closest('svg') && e.tagName === 'text';
    const [a, b] = [light(rgba(inside ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${walk.currentNode.data.trim().slice(0, 30)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("level", ["high", "moderate", "low", "none", "unknown"])
def test_text_stands_out(browser, pages, tmp_path, scheme, level):
    html = (pages / "small.html").read_text()
    (tmp_path / "page.html").write_text(html.replace("verdict moderate", f"verdict {level}"))
    with Visit(browser, tmp_path / "page.html", 1400, scheme) as visit:
        assert visit.run(CONTRAST) == []


def test_dark_is_dark(browser, pages):
    shades = {}
    for scheme in ("light", "dark"):
        with Visit(browser, pages / "small.html", 1400, scheme) as visit:
            shades[scheme] = visit.run("getComputedStyle(document.body).backgroundColor")
            curve = "getComputedStyle(document.querySelector('.plot text')).fill"
            assert visit.run(curve) == visit.run("getComputedStyle(document.body).color")
    assert shades == {"light": "rgb(253, 252, 250)", "dark": "rgb(21, 24, 27)"}


def test_it_opens_in_a_second(browser, pages):
    """A ceiling with room to spare; what is measured is far below."""
    with Visit(browser, pages / "realistic.html") as visit:
        timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        assert visit.run(timing) < 10_000


def test_paper_shows_what_is_folded(browser, pages):
    with Visit(browser, pages / "small.html", 800) as visit:
        visit.page.emulate_media(media="print")
        box = "document.querySelector('#attacks table').getBoundingClientRect().height"
        assert visit.run(box) > 100
        assert visit.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert visit.run("getComputedStyle(document.querySelector('.signature')).display") != "none"


def test_names_and_roles_as_a_screen_reader_gets_them(browser, pages):
    with Visit(browser, pages / "small.html") as visit:
        page = visit.page
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.get_by_role("main").count() == 1
        assert page.get_by_role("navigation", name="Contents").count() == 1
        assert page.get_by_role("region", name="All attacks, strongest first").count() == 1
        assert page.get_by_role("img", name="ROC curve of LiRA, online and Loss").count() == 1
        assert page.get_by_role("rowheader", name="LiRA, online").count() >= 2
