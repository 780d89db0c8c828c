"""The package as an owner installs it: a wheel, put into an environment of its own, run from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command, cwd):
    """stdout of a command in `cwd`, which sees no PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves a build folder in what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "anytext_lcm", folder / "anytext_lcm", ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "built", folder, cwd=folder)
    [built] = (folder / "built").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Python of a fresh environment with the wheel, which sees what this one has installed but no checkout."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # A folder named in a .pth file is searched, and .pth files in it, as of an editable install, are not read.
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*PIP, "--python", python, "install", "--no-deps", wheel, cwd=home)
    return python


def test_the_wheel_carries_networks_and_weights_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(next(name for name in names if name.endswith("METADATA"))).decode()
    wanted = [path for folder in ("models_yaml", "assets") for path in (ROOT / "anytext_lcm" / folder).rglob("*")]
    wanted = {path.relative_to(ROOT).as_posix() for path in wanted if path.is_file()}
    assert {f"anytext_lcm/models_yaml/anytext2_{size}.yaml" for size in ("tiny", "sd15")} <= wanted <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"anytext_lcm"}
    assert "Requires-Python: >=3.11\n" in metadata


@pytest.mark.slow
def test_installed_it_draws_from_an_empty_folder(installed, tmp_path):
    home = run(installed, "-c", "import anytext_lcm; print(anytext_lcm.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(installed.parents[1]), "another copy was imported"
    draw = [installed, "-m", "anytext_lcm.sample", "--config", "models_yaml/anytext2_tiny.yaml", "--device", "cpu"]
    line = ["--prompt", "yellow text on a red background", "--line", "HELLO@10,40,118,80"]
    assert run(*draw, *line, cwd=tmp_path) == "sample.png\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sample.png"]
    red, green, blue = np.asarray(Image.open(tmp_path / "sample.png").convert("RGB")).mean(axis=(0, 1))
    assert red > 1.3 * green and red > 1.3 * blue, "the background is not red"
