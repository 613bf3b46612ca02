"""The site as a reader has it: opened from a disk, without a network, in a browser."""
import ast
import json
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
for needed in ("sphinx", "myst_nb", "pydata_sphinx_theme", "bs4"):
    pytest.importorskip(needed, reason="the site needs `pip install papersuite[docs]`")
from bs4 import BeautifulSoup  # noqa: E402

from papersuite.core.experiment import Experiment  # noqa: E402
from papersuite.core.results import FAILS, HOLDS, UNDECIDED, UNTESTED, Rule  # noqa: E402
from papersuite.build.site import build_site, navigation, page_name, readme, shown_records  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def site():
    "The folder of the site, built once; Sphinx's warnings are errors there."
    start = time.perf_counter()
    index = build_site(ROOT)
    print(f"site built in {time.perf_counter() - start:.1f} s")
    return index.parent


@pytest.fixture(scope="session")
def pages(site):
    "Path below the site -> parsed page."
    return {p.relative_to(site).as_posix(): BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in sorted(site.rglob("*.html"))}


def notebooks():
    return sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def public_names():
    "Module -> the names in its `__all__`, read from the text."
    for path in sorted((ROOT / "papersuite").glob("*/*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), ast.literal_eval(node.value)


# ---- what there is

def test_the_table_of_contents_names_exactly_the_notebooks():
    named = [n for section in navigation(ROOT).values() for n in section]
    assert len(named) == len(set(named))
    assert sorted(named) == notebooks()


def test_quarto_reads_the_same_file():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and os.readlink(link) == "../_quarto.yml"
    spec = yaml.safe_load(link.read_text())
    assert spec["project"]["type"] == "website" and spec["website"]["title"] and "html" in spec["format"]


def test_every_notebook_has_a_page_and_every_page_a_source(pages):
    modules = {f"api/{m.removeprefix('papersuite.')}.html" for m, names in public_names() if names}
    expected = {f"{page_name(n)}.html" for n in notebooks()} | modules | {"api/index.html", "scoreboard.html", "genindex.html", "py-modindex.html", "search.html"}
    assert expected - set(pages) == set()
    assert set(pages) - expected <= {"your_run.html"}


def test_a_page_shows_its_code_and_its_recorded_outputs(pages):
    for n in notebooks():
        shown = re.sub(r"\s+", "", pages[f"{page_name(n)}.html"].get_text())
        for cell in json.loads((ROOT / "nbs" / n).read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or "#| hide" in source:
                continue
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
            assert re.sub(r"\s+", "", code) in shown, f"{n}: a code cell is not on its page\n{source}"
            images = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
            assert not images or pages[f"{page_name(n)}.html"].select("div.cell_output img")


def test_every_public_name_is_in_the_reference(pages):
    for module, names in public_names():
        ids = {t["id"] for t in pages[f"api/{module.removeprefix('papersuite.')}.html"].select("[id]")} if names else set()
        assert {f"{module}.{n}" for n in names} - ids == set()


def test_a_method_patched_in_another_module_stands_in_its_class(pages):
    sweep = pages["api/tensor.network.html"].find(id="papersuite.tensor.network.TensorNetwork.sweep")
    assert "weights" in sweep.get_text() and sweep.find_parent("dd").find_previous_sibling("dt")["id"] == "papersuite.tensor.network.TensorNetwork"
    assert sweep.find_next("div", class_="source").a["href"].startswith("../tensor/als.html#")


def test_the_scoreboard_shows_every_recorded_claim(pages):
    plain = lambda text: " ".join(text.split())
    rows = [(row.find("strong").get_text(), plain(row.get_text(" "))) for row in pages["scoreboard.html"].select(".claims tbody tr")]
    for record in shown_records(ROOT):
        for claim in record["claims"]:
            parts = [plain(claim[k]) for k in ("verdict", "figure")] + [plain(claim["rule"]["text"])]
            assert any(key == claim["key"] and all(p in text for p in parts) for key, text in rows), claim["key"]
        assert pages["index.html"].select(".sd-card .verdict"), "the front page has no verdicts"


# ---- links and assets

def _references(soup):
    for tag, attribute in (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")):
        for t in soup.find_all(tag):
            if t.get(attribute):
                yield t, t[attribute]


def test_every_internal_link_and_anchor_leads_somewhere(site, pages):
    ids = {name: {t["id"] for t in soup.select("[id]")} for name, soup in pages.items()}
    broken, seen = [], 0
    for name, soup in pages.items():
        for _, url in _references(soup):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or url in ("#", ""):
                continue
            seen += 1
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            inside = os.path.relpath(target.resolve(), site)
            if not target.is_file() or inside.startswith(".."):
                broken.append(f"{name}: {url}")
            elif parts.fragment and inside in ids and unquote(parts.fragment) not in ids[inside]:
                broken.append(f"{name}: {url} (no such anchor)")
    assert seen > 100 and not broken, "\n".join(broken[:20])


def test_no_asset_comes_from_elsewhere(site, pages):
    remote = [f"{name}: {url}" for name, soup in pages.items() for tag, url in _references(soup)
              if tag.name != "a" and (urlsplit(url).netloc or urlsplit(url).scheme not in ("", "data")) and tag.get("rel") != ["canonical"]]
    remote += [f"{p.name}: {m}" for p in site.rglob("*.css") for m in re.findall(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^)\"']+)", p.read_text())]
    assert not remote, "\n".join(remote)


def test_pages_do_not_tell_where_they_were_built(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.ipynb"), site / "searchindex.js"]:
        assert str(ROOT) + "/" not in path.read_text(encoding="utf-8"), path


def test_the_readme_is_the_front_page():
    text = readme(ROOT)
    assert text == readme(ROOT)
    assert "make reproduce\nmake test" in text and "TensorStar(" in text
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / link).exists(), link


# ---- a machine's own run

def test_a_run_of_this_machine_is_set_beside_the_committed_one(tmp_path):
    import nbformat
    for name in ("nbs/_static", "nbs/_templates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "_quarto.yml").write_text("website: {sidebar: {contents: [index.ipynb]}}")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Home\n\n<!-- gallery -->")]), tmp_path / "nbs/index.ipynb")
    for folder, values in ((tmp_path / "data/results/toy", [0.0]), (tmp_path / "_runs/smoke/toy", [2.0])):
        lab = Experiment("toy", "smoke", [0], folder=folder)
        lab.claim("A", "it is |small| <1 $x_1$", "size *m*", values, Rule("within", 1))
        lab.claim("B", "nobody looked", "gain", [], Rule("above", 0))
        lab.claim("C", "nobody can tell", "gain", [-1.0, 2.0, 0.5], Rule("above", 0))
        lab.finish()
    (tmp_path / "data/results/toy/record.json").rename(tmp_path / "data/results/toy/smoke.json")
    (tmp_path / "_runs/smoke/broken").mkdir()
    (tmp_path / "_runs/smoke/broken/record.json").write_text("{")
    folder = build_site(tmp_path).parent
    table = BeautifulSoup((folder / "your_run.html").read_text(), "html.parser").select(".claims tbody tr")
    shown = [[v.get_text() for v in row.select(".verdict")] for row in table]
    assert shown == [[f"✓ {HOLDS}", f"✗ {FAILS}"], [f"○ {UNTESTED}"] * 2, [f"◐ {UNDECIDED}"] * 2]
    assert "seeds would decide" in table[2].get_text()
    assert "it is |small| <1" in table[0].get_text() and table[0].select(".math")
    card = BeautifulSoup((folder / "index.html").read_text(), "html.parser").select(".sd-card .verdict")
    assert [v.get_text() for v in card] == [f"✓ 1 {HOLDS}", f"◐ 1 {UNDECIDED}", f"○ 1 {UNTESTED}"]


# ---- in a browser

@pytest.fixture(scope="session")
def browser():
    "Headless Chromium; no network is needed to have it beyond the installed program."
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs the package playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("no chromium or google-chrome on PATH; the site was not opened in a browser")
    with sync_api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield chromium
        chromium.close()


class Reader:
    "A browser window without a network that writes down everything that goes wrong."

    def __init__(self, browser, site, **window):
        self.site, self.faults = site, []
        context = browser.new_context(**window)
        context.route(re.compile(r"^(https?|wss?):"), lambda route: (self.faults.append(f"asks for {route.request.url}"), route.abort()))
        self.page = context.new_page()
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.faults.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.faults.append(f"script: {e}"))
        # a request that was under way when the next page was opened is aborted; a file that is not there ends otherwise
        self.page.on("requestfailed", lambda r: "ERR_ABORTED" in (r.failure or "") or self.faults.append(f"missing: {r.url}"))

    def open(self, name):
        self.page.goto((self.site / name).as_uri(), wait_until="load")
        if self.page.locator(".math").count():
            self.page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            self.page.evaluate("MathJax.startup.promise.then(() => true)")
        return self.page


LOOK = """() => {
  const visible = e => getComputedStyle(e).overflowX === 'visible', wide = innerWidth + 1, main = document.querySelector('#main-content'), page = main.querySelector('article') || main;
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT); let raw = '';
  while (walker.nextNode()) if (!walker.currentNode.parentElement.closest('pre,code,script,style,mjx-container')) raw += walker.currentNode.data + ' ';
  return {
    rendered: document.querySelectorAll('mjx-container').length, wanted: document.querySelectorAll('.math').length,
    bad: document.querySelectorAll('mjx-merror, [data-mjx-error], [data-mml-node=merror], mjx-container [fill=red]').length, raw: (raw.match(/\\$\\$|\\\\\\(|\\\\\\[|\\\\tag/g) || []).length,
    images: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    back: getComputedStyle(document.body).backgroundColor, scroll: document.documentElement.scrollWidth - innerWidth,
    cut: [...main.querySelectorAll('div.cell_input pre')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 40)),
    over: [...main.querySelectorAll('h1,h2,h3,p,li,img,.sd-card,.verdict,table')].filter(e => {
      for (let a = e.parentElement; a && a !== page; a = a.parentElement) if (!visible(a)) return false;
      return e.getBoundingClientRect().right > wide || (visible(e) && e.scrollWidth > e.clientWidth + 1 && e.clientWidth && e.getBoundingClientRect().left + e.scrollWidth > wide);
    }).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))};
}"""


@pytest.mark.parametrize("scheme, width", [("light", 1440), ("dark", 1300), ("light", 390)])
def test_every_page_opens_from_the_disk_without_a_network(browser, site, pages, scheme, width):
    reader, faults, equations = Reader(browser, site, color_scheme=scheme, viewport={"width": width, "height": 850}), [], 0
    for name in pages:
        if name == "search.html":
            continue
        look = reader.open(name).evaluate(LOOK)
        dark = sum(map(int, re.findall(r"\d+", look["back"])[:3])) < 3 * 128
        equations += look["rendered"]
        checks = {"equations missing": look["rendered"] < look["wanted"], "wrong equations": look["bad"], "raw mathematics": look["raw"],
                  "broken images": look["images"], "wrong colours": dark != (scheme == "dark"), "wider than the window": look["scroll"] > 0 or look["over"],
                  "code that is cut": width >= 1440 and look["cut"]}
        faults += [f"{name}: {what} {look}" for what, wrong in checks.items() if wrong] + [f"{name}: {f}" for f in reader.faults]
        reader.faults.clear()
    assert not faults, "\n".join(faults[:15])
    assert equations > 10


def test_search_finds_a_class_from_the_disk(browser, site):
    names = [n for _, names in public_names() for n in names]
    wanted = "TensorStar" if "TensorStar" in names else "Experiment"
    reader = Reader(browser, site)
    page = reader.page
    page.goto((site / "search.html").as_uri() + f"?q={wanted}")
    link = page.locator(f"#search-results a[href*='.{wanted}']").first
    link.wait_for(timeout=10_000)
    link.click()
    page.wait_for_url((site / "api").as_uri() + "/**")  # a click returns before the new page has begun to load
    assert page.locator(f"dt[id$='.{wanted}']").count() == 1
    assert not reader.faults


def test_a_reader_without_a_network_would_notice(browser, site, tmp_path):
    "The check itself: a page with a remote script, a missing image, a wrong equation and a wide picture is refused for each."
    shutil.copytree(site / "_static", tmp_path / "_static")
    text = (site / "core/results.html").read_text().replace("../", "")
    wrong = r'<script src="https://example.org/x.js"></script><img src="gone.png"><p class="mathjax_ignore">$$x$$</p><p style="width:3000px">wide</p><div class="math">\[a^b^c\]</div><div class="math">\[\nosuchmacro\]</div>'
    (tmp_path / "bad.html").write_text(re.sub(r"(<article[^>]*>)", lambda m: m[1] + wrong, text))
    reader = Reader(browser, tmp_path)
    look = reader.open("bad.html").evaluate(LOOK)
    assert any("asks for https://example.org" in f for f in reader.faults) and any("gone.png" in f for f in reader.faults)
    assert look["bad"] >= 2 and look["raw"] and look["over"] and look["images"]
