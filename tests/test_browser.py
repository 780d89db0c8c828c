"""The notebooks as a reader meets them: a real JupyterLab in a real browser. `make test-browser`.

Each notebook is opened, run from top to bottom, and every explorer's first slider is moved: the picture below
it has to change. Its first exercise is done wrongly and rightly, and a cell in the middle runs again. The playground is
opened in a notebook of its own, over a network that draws in milliseconds.
Screenshots are left in outputs/browser. Servers listen on the loopback alone.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from test_exercises import SOLUTION, exercises
from test_notebooks import read

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WITH_EXPLORERS = {
    "01_inspect_modules.ipynb": 1,
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
# Runs the first cell whose text holds `words`, with `source` in place of its text if one is given; returns its outputs.
RUN_ONE = """async ([words, source]) => {
    const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
    const place = notebook.widgets.findIndex((cell) => cell.model.sharedModel.getSource().includes(words));
    const cell = notebook.widgets[place];
    if (source !== null) cell.model.sharedModel.setSource(source);
    notebook.activeCellIndex = place;
    await app.commands.execute('notebook:run-cell');
    return cell.model.toJSON().outputs;
}"""
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


def move(page, explorer):
    """Moves the explorer's first slider by one place, either way, until its picture is another one."""
    image, handle = explorer.locator("img.explorer-picture"), explorer.locator(".noUi-handle").first
    before = image.evaluate(DIGEST)
    handle.scroll_into_view_if_needed()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):  # it may stand at one end
        handle.focus()
        page.keyboard.press(key)
        for _ in range(200):
            if image.evaluate(DIGEST) != before:
                return True
            time.sleep(0.3)
    return False


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


def said(outputs):
    """What a cell printed, without an error."""
    assert not [output for output in outputs if output["output_type"] == "error"], outputs
    return "".join("".join(output.get("text", "")) for output in outputs)


def check_exercise(page, path, name):
    """A wrong answer is refused in words, the solution is right; the first is the solution with one change."""
    stub, _, answer, _, below = exercises(path)[name]
    [solution], call = SOLUTION.findall(below), f'check("{name}", {answer})'
    text, replacement, words = import_module(f"wrong_answers_{path.stem[:2]}").WRONG[name][0]
    for code, wanted in ((solution.replace(text, replacement), words), (solution, f"{name}: right. ")):
        assert wanted in said(page.evaluate(RUN_ONE, [call, f"{code}\n\n\n{call}"]))


def again(page, name):
    """A cell in the middle runs once more after all others."""
    cells = [source for source, _ in read(ROOT / "notebooks" / name, "code")]
    said(page.evaluate(RUN_ONE, [cells[len(cells) // 2], None]))


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
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "playground.png")
    before = student.evaluate(DIGEST)
    text = page.get_by_placeholder("empty").first  # of line 1
    text.fill("oak")
    text.press("Tab")
    page.get_by_role("button", name="Draw (student)").click()
    for _ in range(200):
        if student.evaluate(DIGEST) != before:
            break
        time.sleep(0.3)
    else:
        pytest.fail("another text drew the same picture")
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
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for number in range(explorers.count()):
        explorer = explorers.nth(number)
        assert move(page, explorer), f"explorer {number + 1}: the slider moved and the picture did not change"
        explorer.screenshot(path=SCREENSHOTS / f"{name[:2]}_explorer_{number + 1}.png")
    page.screenshot(path=SCREENSHOTS / f"{name[:2]}_page.png")
    for exercise in list(exercises(ROOT / "notebooks" / name))[:1]:
        check_exercise(page, ROOT / "notebooks" / name, exercise)
    again(page, name)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()
