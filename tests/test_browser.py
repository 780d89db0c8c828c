"""The notebooks and the site as a reader meets them: a real JupyterLab and a real browser. `make test-browser`.

Each notebook is opened and run from top to bottom. Every slider of its explorers is moved: the picture below it has to
change. One exercise is answered wrongly and rightly, and a cell in the middle is run again. The playground is opened in
a notebook of its own, over a network that draws in milliseconds. The site is built, and each of its pages opened.
Screenshots at 1280 and 700 pixels in both themes are left in outputs/browser. Servers listen on the loopback alone.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from test_exercises import CALL, SOLUTION, exercises

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WITH_EXPLORERS = {  # at least so many
    "01_inspect_modules.ipynb": 1,
    "02_mock_dataset.ipynb": 1,
    "03_lcm_maths.ipynb": 3,
    "04_launch_distillation.ipynb": 1,
    "06_beyond_lcm.ipynb": 3,
}
SCREENSHOTS = ROOT / "outputs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing outside is to be asked for; root, as in a container, cannot have the sandbox.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
]
SETTINGS = {  # cells out of sight stay in the page, and no news are fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells');
    return panel.context.model.toJSON();
}"""
RUN_CELL = """async ([index, source]) => {
    const app = window.jupyterapp, panel = app.shell.currentWidget;
    panel.content.activeCellIndex = index;
    if (source !== null) panel.content.activeCell.model.sharedModel.setSource(source);
    await app.commands.execute('notebook:run-cell');
    return panel.context.model.toJSON().cells[index].outputs;
}"""
THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
DIGEST = """async (image) => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    return Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))).join();
}"""

PLAYGROUND = """import sys
sys.path.insert(0, "../tests")
from micro_network import micro_network
from anytext_lcm.adapter import lora
from anytext_lcm.model.networks import Defaults
from anytext_lcm.teaching.playground_form import Playground
model = lora.attach(micro_network(), rank=2, alpha=2)
Playground(model, Defaults((64, 64), 2, 2.0, ""))
"""

MAX_PAGE_MB = 2.5  # of a page of the site with all that it loads
ON_PAGE = """() => ({
    links: Array.from(document.querySelectorAll('a[href]'), a => a.href),
    anchors: Array.from(document.querySelectorAll('[id]'), e => e.id),
    unseen: Array.from(document.images).filter(i => !i.naturalWidth).map(i => i.src),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    text: document.body.innerText,
})"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it, as with apt-get install chromium"),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab over a copy of the notebooks, with the files they read beside it."""
    root, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    cell = {
        "cell_type": "code",
        "id": "playground",
        "metadata": {},
        "source": PLAYGROUND,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks" / "playground.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    for name in ("models_yaml", "anytext_lcm", "tests"):
        (root / name).symlink_to(ROOT / name)
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port = free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the kernel is this Python
    environment = {
        **os.environ,
        "HOME": str(home),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTEST_CURRENT_TEST", None)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(root / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (root / "server.log").read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not answer in five minutes: " + (root / "server.log").read_text()[-2000:])
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own group: the server and its kernels
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def move(page, explorer, number):
    """Moves a handle of the explorer by one place, either way, until its picture is another one."""
    image, handle = explorer.locator("img.explorer-picture"), explorer.locator(".noUi-handle").nth(number)
    before = image.evaluate(DIGEST)
    handle.scroll_into_view_if_needed()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):  # it may stand at one end
        handle.focus()
        page.keyboard.press(key)
        for _ in range(100):
            if image.evaluate(DIGEST) != before:
                return True
            time.sleep(0.3)
    return False


def run_cell(page, index, source=None):
    """Runs one cell, with another source if it is given; the text that it prints. Errors fail."""
    outputs = page.evaluate(RUN_CELL, [index, source])
    errors = [(out["ename"], out["evalue"]) for out in outputs if out["output_type"] == "error"]
    assert not errors, f"cell {index}: {errors}"
    return "".join("".join(out.get("text", "")) for out in outputs)


def answer_an_exercise(page, path):
    """The first exercise of the notebook: a wrong answer is refused in words, the solution is right."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [i for i, cell in enumerate(cells) if "exercise" in cell["metadata"].get("tags", ())]
    if not found:
        return
    name, (stub, _, _, _, below) = next(iter(exercises(path).items()))
    [solution], call = SOLUTION.findall(below), CALL.search(stub)[0]
    text, replacement, words = import_module(f"wrong_answers_{path.name[:2]}").WRONG[name][0]
    wrong = run_cell(page, found[0], f"{solution.replace(text, replacement)}\n\n\n{call}")
    assert wrong.startswith(f"{name}: not yet: ") and words in wrong, wrong
    assert run_cell(page, found[0], f"{solution}\n\n\n{call}").startswith(f"{name}: right. ")


def run_a_middle_cell_again(page, path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    plain = [
        i
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "code"
        and "exercise" not in cell["metadata"].get("tags", ())
        and "launch(" not in "".join(cell["source"])
    ]
    run_cell(page, plain[len(plain) // 2])


def take_screenshots(page, name, element=None):
    """At both widths and in both themes, with the element in sight."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        page.evaluate(THEME, theme)
        for width in (1280, 700):
            page.set_viewport_size({"width": width, "height": 900})
            if element is not None:
                element.scroll_into_view_if_needed()
            time.sleep(0.5)  # the page settles
            page.screenshot(path=SCREENSHOTS / f"{name}_{width}_{theme.split()[1].lower()}.png")
    page.set_viewport_size({"width": 1200, "height": 900})


def run_all(browser, lab, name):
    """The page of a notebook that was run from top to bottom without an error."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(300_000)
    page.goto(f"{lab}/lab/tree/notebooks/{name}?reset")
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.context")
    cells = [cell for cell in page.evaluate(RUN_ALL)["cells"] if cell["cell_type"] == "code"]
    outputs = [(i, output) for i, cell in enumerate(cells, 1) for output in cell["outputs"]]
    errors = [(i, out["ename"], out["evalue"]) for i, out in outputs if out["output_type"] == "error"]
    assert not errors and [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    return page


def test_the_playground_draws(lab, browser):
    """Both buttons' pictures appear with what they took, a changed text changes the student's, and an empty one is
    refused in words.
    """
    page = run_all(browser, lab, "playground.ipynb")
    student, teacher = (page.locator(f"img.playground-{name}") for name in ("student", "teacher"))
    page.get_by_role("button", name="Side by side").click()
    for image in (student, teacher):
        image.wait_for(state="visible")
        page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    page.get_by_text("4 evaluations").wait_for()
    cut = "Array.from(document.querySelectorAll('.widget-label')).filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(cut) == 0, "the name of a control is cut"
    take_screenshots(page, "playground")
    text = page.get_by_placeholder("empty").first  # of line 1
    page.set_viewport_size({"width": 700, "height": 900})
    assert text.bounding_box()["width"] > 100, "at 700 pixels nobody can write into the field"
    page.set_viewport_size({"width": 1280, "height": 900})
    for name in ("Draw (student)", "Side by side"):
        assert page.get_by_role("button", name=name).bounding_box()["width"] > 60
    before = student.evaluate(DIGEST)
    text.fill("oak")
    text.press("Tab")
    old = page.get_by_text("out of date")
    old.nth(1).wait_for()
    grey = student.evaluate(DIGEST)
    assert grey != before
    page.get_by_role("button", name="Draw (student)").click()
    for _ in range(200):
        if old.count() == 1:  # the teacher's alone
            break
        time.sleep(0.3)
    assert old.count() == 1 and student.evaluate(DIGEST) not in (before, grey), "another text, the same picture"
    text.fill("")
    text.press("Tab")
    page.get_by_role("button", name="Draw (student)").click()
    page.get_by_text("no line of text").wait_for()
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_in_jupyterlab(name, lab, browser):
    page = run_all(browser, lab, name)
    explorers = page.locator(".widget-vbox:has(> img.explorer-picture)")
    assert explorers.count() >= WITH_EXPLORERS.get(name, 0)
    for number in range(explorers.count()):
        explorer = explorers.nth(number)
        for handle in range(explorer.locator(".noUi-handle").count()):
            assert move(page, explorer, handle), f"explorer {number + 1}: slider {handle + 1} changes no picture"
        take_screenshots(page, f"{name[:2]}_explorer_{number + 1}", explorer)
    answer_an_exercise(page, ROOT / "notebooks" / name)
    run_a_middle_cell_again(page, ROOT / "notebooks" / name)
    playground = page.locator("img.playground-student")
    take_screenshots(page, name[:2], playground if playground.count() else None)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing, and lets nothing be kept, so that each page is weighed with all that it loads."""

    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(folder, address) of the site, built as `make site` does."""
    folder = tmp_path_factory.mktemp("build")
    flags = ["--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *flags, ".", str(folder / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder / "site"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder / "site", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_every_page_of_the_site(site, browser):
    """From the first page all are reached; no link is broken, no picture missing, no page heavy, and nothing outside
    is asked for.
    """
    folder, address = site
    page = browser.new_page(viewport={"width": 700, "height": 900})
    loaded = []
    page.on("response", lambda response: loaded.append(response))  # playwright cannot call a list's own method
    waiting, found, outside = [f"{address}search.html", f"{address}index.html"], {}, set()
    while waiting:
        url = waiting.pop()
        loaded.clear()
        page.goto(url, wait_until="networkidle")
        found[url] = seen = page.evaluate(ON_PAGE)
        outside |= {response.url for response in loaded if not response.url.startswith((address, "data:"))}
        assert all(response.ok for response in loaded), [r.url for r in loaded if not r.ok]
        size = sum(len(response.body()) for response in loaded if response.url.startswith(address)) / 1e6
        assert size < MAX_PAGE_MB, f"{url}: {size:.1f} MB"
        assert not seen["unseen"] and seen["overflow"] <= 0, url
        assert "\\frac" not in seen["text"] and "$$" not in seen["text"], f"{url}: a formula is not drawn"
        pages = {urllib.parse.urldefrag(link).url for link in seen["links"] if link.startswith(address)}
        waiting += [link for link in sorted(pages) if link.endswith(".html") and link not in {*found, *waiting}]
    page.close()
    assert outside == set()
    broken = []
    for url, seen in found.items():
        for link in filter(lambda link: link.startswith(address), seen["links"]):
            target, anchor = urllib.parse.urldefrag(link)
            there = (folder / urllib.parse.unquote(target.removeprefix(address))).is_file()
            if not there or anchor and anchor not in found[target]["anchors"]:
                broken.append(f"{url}: {link}")
    assert broken == []
    built = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")} - {"genindex.html"}
    assert {url.removeprefix(address) for url in found} >= built
    assert sum(name.startswith("notebooks/0") for name in built) == len(NOTEBOOKS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_formulas_and_figures_of_the_site_are_seen(scheme, site, browser):
    """A fraction stands in two lines of the site's own font; a figure has its size; the page follows the theme."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.goto(f"{site[1]}notebooks/03_lcm_maths.html", wait_until="networkidle")
    fraction = page.locator("math[display=block] mfrac").first
    above, below = (fraction.locator(f"> :nth-child({place})").bounding_box() for place in (1, 2))
    assert above["y"] + above["height"] <= below["y"] + 2 and below["height"] > 5
    assert page.evaluate("Array.from(document.fonts).some(f => f.family.includes('STIX') && f.status == 'loaded')")
    figure = page.locator(".cell_output img").first.bounding_box()
    assert figure["width"] > 300 and figure["height"] > 100
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 64) if scheme == "dark" else (min(ground) > 191)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    fraction.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / f"site_{scheme}.png")
    page.close()
