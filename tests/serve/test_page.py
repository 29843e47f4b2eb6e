"""The page in a real browser: nothing from outside, rankings, heat map and map drawn, keyboard,
phone width, dark, labels.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from helpers.serve_fakes import live, tiny_encoder

from taskdistill.serve.settings import ServerSettings

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    search = pytest.importorskip(
        "taskdistill.search.build", reason="taskdistill.search is not importable here"
    )
    from taskdistill.search.corpus import Document

    topics = {
        "animals": ["cat", "dog", "horse", "hen"],
        "tools": ["saw", "file", "vice", "plane"],
        "food": ["bread", "soup", "rice"],
    }
    documents = [
        Document(
            f"{topic}-{i}",
            f"{word} number {i} and what there is to say about the {word}",
            {"topic": topic},
        )
        for topic, words in topics.items()
        for i, word in enumerate(words * 8)
    ]
    return search.build_index(
        tiny_encoder(1), documents, tmp_path_factory.mktemp("page") / "index"
    )[0]


@pytest.fixture(scope="module")
def address(index):
    with live(tiny_encoder(), index) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, address):
    """Open the page; afterwards no error may have been logged and no other host asked for
    anything.
    """
    problems, pages = [], []

    def open_page(panel="search", **options):
        page = browser.new_page(**options)
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda message: (
                problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(address) else problems.append(request.url)
            ),
        )
        page.goto(f"{address}/#{panel}")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def test_the_files_carry_a_strict_policy(address):
    for path, kind in (
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/style.css", "text/css"),
    ):
        answer = httpx.get(address + path)
        assert answer.headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", ""), path
    assert httpx.get(f"{address}/page/../../app.py").status_code == 404
    assert httpx.get(f"{address}/page/nothing.js").status_code == 404


def test_the_index_is_searched_and_the_differences_are_shown(opened, index):
    page = opened()
    page.wait_for_selector("#hits-b li")
    assert page.locator("#hits-a li").count() == page.locator("#hits-b li").count() == 10
    page.fill("#query", "what there is to say about the bread")
    page.keyboard.press("Enter")
    wanted = index.search(["what there is to say about the bread"], 10, encoder=tiny_encoder(1))[0]
    place = f"{wanted[0].score:.3f} · {wanted[0].id}, characters 0–{wanted[0].end}"
    page.wait_for_selector(f"#hits-a .from >> text={place}")
    assert page.locator("#hits-a .text").all_text_contents() == [hit.text for hit in wanted]
    a, b = page.locator("#choices-a select"), page.locator("#choices-b select")
    assert page.locator("#cost-b").text_content().endswith("bytes per vector2")
    a.nth(2).select_option("float32")
    for which, values in (
        (0, ["retrieval", "retrieval"]),
        (1, ["32", "32"]),
        (2, ["float32", "float32"]),
    ):
        a.nth(which).select_option(values[0])
        b.nth(which).select_option(values[1])
    page.wait_for_function(
        "() => document.querySelector('#search-verdict').textContent.startsWith('10 of the first 10"
        " are the same; 0 of B')"
    )
    assert page.locator("#cost-b").text_content().endswith("bytes per vector128")
    b.nth(0).select_option("clustering")
    page.wait_for_function("() => document.querySelector('#hits-b .up, #hits-b .down') !== null")
    assert b.nth(2).locator("option[value=int8]").is_disabled()
    b.nth(0).select_option("retrieval")
    b.nth(2).select_option("int8")
    page.wait_for_function(
        "() => document.querySelector('#cost-b').textContent.endsWith('bytes per vector32')"
    )


def test_own_texts_are_searched(opened):
    page = opened()
    page.wait_for_selector("#hits-b li")
    page.check("input[name=source][value=texts]")
    page.wait_for_function(
        "() => document.querySelector('#search-verdict').textContent.includes('first 10') &&"
        " !document.querySelector('#hits-a .from').textContent.includes('·')"
    )
    page.fill("#search-texts", "alpha\nbeta\ngamma")
    page.fill("#query", "beta")
    page.click("#search-form button.main")
    page.wait_for_function("() => document.querySelectorAll('#hits-a li').length === 3")


def test_the_heat_map_is_walked_with_the_keyboard(opened):
    page = opened("compare")
    page.fill("#compare-texts", "red\nred\nsomething else entirely")
    page.click("#compare-form button.main")
    page.wait_for_function("() => document.querySelectorAll('#heat td:not(.corner)').length === 9")
    cells = page.locator("#heat tbody td")
    assert cells.nth(1).text_content() == "1.00"
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "“red” and “something else entirely”" in page.locator("#heat-pair").text_content()
    assert page.locator("#heat td[tabindex='0']").count() == 1
    page.locator("#choices-compare select").nth(2).select_option("binary")
    page.wait_for_function(
        "() => document.querySelector('#cost-compare').textContent.includes('vector4')"
    )


def test_the_map_colours_and_shapes_labels(opened):
    page = opened("map")
    page.wait_for_selector("#plot path")
    assert page.locator("#plot path").count() == 24
    assert page.locator("#legend li").all_text_contents() == [
        "cooking",
        "weather",
        "sport",
        "computing",
    ]
    assert (
        len(
            set(
                page.locator("#legend path").evaluate_all(
                    "nodes => nodes.map((node) => node.getAttribute('d'))"
                )
            )
        )
        == 4
    )
    page.locator("#plot path").first.focus()
    before = page.locator("#plot-point").text_content()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#plot-point").text_content() != before
    page.check("input[name=map-source][value=index]")
    page.wait_for_function("() => document.querySelectorAll('#plot path').length === 88")
    assert sorted(page.locator("#legend li").all_text_contents()) == ["animals", "food", "tools"]
    page.select_option("#map-field", label="(nothing)")
    page.wait_for_function("() => document.querySelectorAll('#legend li').length === 1")
    page.select_option("#map-field", label="beginning of the id")
    page.wait_for_function("() => document.querySelectorAll('#legend li').length === 3")
    assert sorted(page.locator("#legend li").all_text_contents()) == ["animals", "food", "tools"]
    assert page.locator("#map").get_attribute("aria-busy") is None


def test_the_tabs_follow_the_arrow_keys(opened):
    page = opened()
    page.wait_for_selector("#hits-b li")
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    assert page.locator("#compare").is_visible()
    assert page.locator("#tab-compare").get_attribute("aria-selected") == "true"
    page.wait_for_selector("#heat td")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#map").is_visible()
    page.wait_for_selector("#plot path")


@pytest.mark.parametrize(
    "options",
    [{"viewport": {"width": 390, "height": 844}}, {"viewport": {"width": 320, "height": 640}}],
)
def test_nothing_is_wider_than_a_phone_and_everything_can_be_touched(opened, options):
    page = opened(**options)
    for panel, drawn in (("search", "#hits-b li"), ("compare", "#heat td"), ("map", "#plot path")):
        page.click(f"#tab-{panel}")
        page.wait_for_selector(drawn)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), panel
        low = page.evaluate(
            "() => [...document.querySelectorAll('button, select, input[type=search],"
            " [role=tab]')].filter((node) => node.offsetParent && node.offsetHeight <"
            " 44).map((node) => node.outerHTML)"
        )
        assert low == [], panel


CONTRAST = """() => {
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const lum = (c) => {
    const [r, g, b] = c.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const one = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const canvas = one.getContext('2d', { willReadFrequently: true });
  const rgb = (c) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = c;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (n) => {
    for (; n; n = n.parentElement) {
      const c = rgb(getComputedStyle(n).backgroundColor);
      if (c[3] === 255) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const n of document.querySelectorAll('body *')) {
    const own = [...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !n.offsetParent || n.matches(':disabled, option, .sr')) continue;
    const [a, b] = [lum(rgb(getComputedStyle(n).color).slice(0, 3)), lum(behind(n))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([n.tagName, n.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(opened, scheme):
    page = opened(color_scheme=scheme)
    for panel, drawn in (("search", "#hits-b li"), ("compare", "#heat td"), ("map", "#plot path")):
        page.click(f"#tab-{panel}")
        page.wait_for_selector(drawn)
        page.wait_for_timeout(300)
        assert page.evaluate(CONTRAST) == [], panel


def test_every_control_has_a_name(opened):
    page = opened()
    page.wait_for_selector("#hits-b li")
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('input, select, textarea, button')].filter((node) =>"
        " !(node.labels?.length || node.textContent.trim() || node.ariaLabel)).map((node) =>"
        " node.outerHTML)"
    )
    assert nameless == []


def test_errors_are_told_in_words(opened):
    page = opened()
    page.wait_for_selector("#hits-b li")
    page.fill("#query", "")
    page.click("#search-form button.main")
    page.wait_for_selector("#problem:visible")
    assert page.locator("#problem").text_content() == "Type a query."
    assert page.locator("#search-form button.main").is_enabled()


def test_the_routes_are_described(opened, address):
    page = opened()
    page.goto(f"{address}/docs")
    page.wait_for_selector(".route")
    assert "POST /v1/embeddings" in page.locator(".route h3").all_text_contents()


def test_a_key_is_asked_for(browser):
    key = "0123456789abcdef"
    with live(tiny_encoder(1), settings=ServerSettings(api_key=key)) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#problem:visible")
        page.fill("#key", key)
        page.click("#key-form button")
        page.wait_for_selector("#hits-b li")
        assert page.locator("#problem").is_hidden()
        page.close()


def test_the_page_is_part_of_the_package():
    import taskdistill.serve

    names = {path.name for path in (Path(taskdistill.serve.__file__).parent / "page").iterdir()}
    assert {"index.html", "app.js", "style.css", "docs.html"} <= names
