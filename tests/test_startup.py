"""What a command imports before it does anything: each `--help` in a fresh process, and what notebooks load.

Measured as seconds of CPU on one core of an AVX2 machine, each alone: torch 1.4, accelerate 1.8, diffusers 3.4,
peft 4.8, matplotlib.pyplot 0.5, transformers 0.7 (its argument parser alone). A `--help` is to take less than one
second, so none of these may be imported before the flags are parsed; cheaper ones (numpy, cv2, pyarrow: 0.1 each) only
count among the modules.
"""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_rooms import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "anytext_lcm"
HEAVY = {
    "accelerate",
    "diffusers",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "peft",
    "rapidocr",
    "tensorboard",
    "torch",
    "transformers",
}
# A module takes about 1.3 ms to import, so that this many stay well below a second on a slow machine, too.
MOST_MODULES = 500
# What a notebook may load of the two rooms that draw pictures and judge them. Notebooks 03 and 06 draw with the
# embedded network, whose conditioning and noise come from `drawing`.
NOTEBOOKS = {
    "01_inspect_modules": (),
    "02_mock_dataset": (),
    "03_lcm_maths": ("drawing",),
    "06_beyond_lcm": ("drawing",),
}
HELP = """
import json, runpy, sys, time
name = sys.argv.pop(1)
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    code = "returned"
except SystemExit as end:
    code = end.code
sys.stderr.write(json.dumps({"code": code, "modules": sorted(sys.modules), "seconds": time.process_time()}))
"""
LOAD = """
import json, sys
exec(sys.stdin.read())
sys.stderr.write(json.dumps(sorted(sys.modules)))
"""


def runnable_modules():
    """Dotted names of the commands: files at the package's root that run as a script, folders with a `__main__.py`."""
    files = [path for path in PACKAGE.glob("*.py") if runs_as_script(path)]
    return sorted([f"anytext_lcm.{path.stem}" for path in files] + folders_that_run())


def folders_that_run():
    return [".".join(path.relative_to(ROOT).parent.parts) for path in PACKAGE.rglob("__main__.py")]


def runs_as_script(path):
    return any(is_main_guard(node) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def package_imports(source):
    """The statements of a cell, given as its lines, that import from the package; magics are left out."""
    code = "".join(line for line in source if not line.lstrip().startswith(("%", "!")))
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [line for line in map(ast.unparse, nodes) if "anytext_lcm" in line]


def run_python(code, *arguments, stdin=""):
    """(stdout, what the code wrote last to stderr as JSON) of a fresh interpreter in the repository's root."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_every_command_shows_its_help_without_heavy_imports():
    commands = runnable_modules()
    assert {f"anytext_lcm.{name}" for name in COMMANDS} <= set(commands)
    offenders = []
    for command in commands:
        text, found = run_python(HELP, command, "--help")
        assert found["code"] in (None, 0) and text.startswith("usage:"), f"{command} --help failed: {found['code']}"
        heavy = HEAVY & {name.partition(".")[0] for name in found["modules"]}
        if heavy or len(found["modules"]) > MOST_MODULES:
            what = ", ".join(sorted(heavy)) or "nothing heavy"
            offenders.append(f"{command}: {found['seconds']:.1f} s, {len(found['modules'])} modules, with {what}")
    listed = "\n".join(offenders)
    assert not offenders, f"--help of {len(offenders)} of {len(commands)} commands imports too much:\n{listed}"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_loads_no_drawing_and_judging_that_it_does_not_need(notebook):
    """Its imports of the package, run in a fresh process."""
    for folder in ("drawing", "judging"):
        assert find_spec(f"anytext_lcm.{folder}"), f"anytext_lcm.{folder} is not there"
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in package_imports(cell["source"])]
    assert lines, f"{notebook} imports nothing of the package"
    _, modules = run_python(LOAD, stdin="\n".join(lines))
    loaded = {room for room in ("drawing", "judging") if f"anytext_lcm.{room}" in modules}
    assert loaded == set(NOTEBOOKS[notebook]), f"{notebook} loads {', '.join(sorted(loaded)) or 'neither'}"
    heavy = {"peft", "diffusers", "transformers", "accelerate"} & {name.partition(".")[0] for name in modules}
    assert not heavy or "drawing" in NOTEBOOKS[notebook], f"{notebook} loads {', '.join(sorted(heavy))}"
