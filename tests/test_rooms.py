"""The house: each room of the package names here the rooms that it may import. `CONTRIBUTING.md` shows the plan."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "anytext_lcm"

# From the bottom of the house up. A room may import what stands above its own line, and only what it names.
MAY_IMPORT = {
    "files": set(),
    "command": {"files"},
    "lcm": set(),
    "model": {"lcm", "files"},
    "figures": {"files"},
    "adapter": {"lcm", "model", "figures", "files"},
    "data": {"figures", "files", "command"},
    "drawing": {"lcm", "model", "adapter", "data", "files"},
    "judging": {"lcm", "model", "adapter", "figures", "data", "drawing", "files"},
    "training": {"lcm", "model", "adapter", "figures", "data", "drawing", "judging", "files", "command"},
    "teacher": {"lcm", "model", "data", "files"},
    "timing": {"lcm", "model", "adapter", "figures", "data", "drawing", "judging", "training", "files"},
    "checks": {"lcm", "model", "adapter", "data", "drawing", "training", "timing", "files", "command"},
    "teaching": {"lcm", "model", "adapter", "figures", "data", "drawing"},
}
COMMANDS = (
    "ablate",
    "benchmark",
    "build_teacher",
    "cache_latents",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "inspect_modules",
    "sample",
    "speed",
    "train",
)
# Third-party packages that would let training or the network leak into a lower room.
FORBIDDEN = {
    "lcm": {"peft", "accelerate", "transformers", "diffusers", "numpy", "matplotlib", "tensorboard"},
    "model": {"peft", "accelerate", "tensorboard", "matplotlib", "rapidocr", "diffusers"},
    # data/fonts.py asks matplotlib, whose fonts it uses, for those of the system.
    "data": {"peft", "accelerate", "transformers", "tensorboard", "rapidocr", "diffusers"},
    "figures": {"peft", "accelerate", "rapidocr"},
}


@cache
def modules():
    """(room or command, path, syntax tree) of every file of the package but its own __init__."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [path.relative_to(PACKAGE).with_suffix("").parts[0] for path in paths]
    return [
        (name, path, ast.parse(path.read_text(encoding="utf-8")))
        for name, path in zip(names, paths, strict=True)
        if name != "__init__"
    ]


def imports(path, tree):
    """Dotted names imported anywhere in the file at `path`, relative ones made absolute."""
    folder = ["anytext_lcm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = [part for part in [*base, *(node.module or "").split(".")] if part]
            if base == ["anytext_lcm"]:
                yield from (f"anytext_lcm.{alias.name}" for alias in node.names)
            else:
                yield ".".join(base)


def test_the_order_has_no_cycle():
    above = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{name} may import {sorted(allowed - above)}, which stands below it"
        above.add(name)


def test_at_the_root_stand_commands_and_two_files():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "command", "files", *COMMANDS}


@pytest.mark.parametrize("name", [*MAY_IMPORT, *COMMANDS])
def test_imports_run_one_way(name):
    allowed = MAY_IMPORT.get(name, set(MAY_IMPORT))  # a command stands on every room and on no other command
    for found, path, tree in modules():
        if found != name:
            continue
        ours = {dotted.split(".")[1] for dotted in imports(path, tree) if dotted.startswith("anytext_lcm.")}
        ours -= {name, "__version__", "assets"}
        assert ours <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(ours - allowed)}"


def test_rooms_take_no_private_name_of_another_file():
    for _, path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anytext_lcm"):
                private = [
                    alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"
                ]
                assert not private, f"{path.relative_to(PACKAGE)} imports {private} of {node.module}"


def test_mathematics_stands_on_torch_alone():
    for name, path, tree in modules():
        if name == "lcm" or path.name == "toy.py":
            foreign = {dotted.split(".")[0] for dotted in imports(path, tree)}
            foreign -= {"torch", "anytext_lcm", *sys.stdlib_module_names}
            assert not foreign, f"{path.relative_to(PACKAGE)} imports {sorted(foreign)}"


def test_lower_rooms_know_no_training():
    for name, path, tree in modules():
        found = {dotted.split(".")[0] for dotted in imports(path, tree)} & FORBIDDEN.get(name, set())
        assert not found, f"{path.relative_to(PACKAGE)} imports {sorted(found)}"


@pytest.mark.parametrize("room", [name for name in MAY_IMPORT if (PACKAGE / name).is_dir()])
def test_a_room_says_what_it_is_and_where_to_read_first(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert "It imports" in text and "Read " in text
    named = {word.strip("`,.;") for word in text.split() if word.strip("`,.;").endswith(".py")}
    for file in named:
        assert any((folder / file).is_file() for folder in (PACKAGE / room, PACKAGE)), f"{room} names {file}"


def test_the_package_exports_only_its_version():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert names == ["__version__"]
    assert len(tree.body) == 2, "a docstring and the version, nothing else"
