"""Imports run one way: each module of the package names here what it may import."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "anytext_lcm"

# From the bottom up. A module may import only what stands above its own line.
MAY_IMPORT = {
    "outputs": set(),
    "editing": set(),
    "lcm": set(),
    "toy": {"lcm"},
    "model": {"lcm"},
    "data": {"outputs"},
    "lora": {"model", "outputs"},
    "exchange": {"model", "lora", "outputs"},
    "judge": {"data"},
    "sheet": {"data"},
    "pipeline": {"lcm", "model", "data", "lora"},
    "playground": {"data", "model", "pipeline", "editing"},
    "settings": {"lcm", "pipeline"},
    "checkpoints": {"model", "lora", "outputs", "settings"},
    "latents": {"model", "data", "outputs", "checkpoints"},
    "watch": {"model", "data", "judge", "pipeline", "settings"},
    "memory": {"model", "lora"},
    "teacher": {"lcm", "model", "data", "outputs"},
    "distill": {"lcm", "model", "data", "lora", "pipeline", "outputs", "settings", "checkpoints", "latents", "watch"},
    "launch": {"distill"},
    "recipes": {"pipeline", "checkpoints", "distill"},
    "reference": {"lcm", "model", "pipeline", "distill"},
    "ledger": {"model"},
    "curves": set(),
    "tables": set(),
    "plots": {"lcm", "toy", "model", "data", "judge"},
}
LIBRARY = set(MAY_IMPORT)
MAY_IMPORT["widgets"] = LIBRARY
# Demo and ablation end in the evaluation; other commands stand alone.
COMMANDS_MAY_IMPORT = {"demo": LIBRARY | {"evaluate"}, "ablate": LIBRARY | {"evaluate"}}
# Third-party packages that would let training or the network leak into a lower room.
FORBIDDEN = {
    "model": {"peft", "accelerate", "tensorboard", "matplotlib", "rapidocr"},
    # data/fonts.py asks matplotlib, whose fonts it uses, for those of the system.
    "data": {"peft", "accelerate", "transformers", "tensorboard", "rapidocr"},
}


def modules():
    """(top-level name, path, syntax tree) of every file of the package but its __init__."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name != "__init__":
            yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(path, tree):
    """Dotted names imported by the file at `path`, relative ones made absolute."""
    folder = ["anytext_lcm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")]
            base = [part for part in base if part]
            if base == ["anytext_lcm"]:
                yield from (f"anytext_lcm.{alias.name}" for alias in node.names)
            else:
                yield ".".join(base)


def is_command(tree):
    """Whether the file can be run: it has a function main or a block for __name__ == "__main__"."""
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == "main"
        or isinstance(node, ast.If)
        and "__main__" in ast.unparse(node.test)
        for node in tree.body
    )


def test_the_order_has_no_cycle():
    above = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{name} may import {sorted(allowed - above)}, which stands below it"
        above.add(name)


def test_imports_run_one_way():
    for name, path, tree in modules():
        ours = {dotted.split(".")[1] for dotted in imports(path, tree) if dotted.startswith("anytext_lcm.")}
        ours -= {name, "__version__", "assets"}
        if name in MAY_IMPORT:
            allowed = MAY_IMPORT[name]
        else:  # a command stands on everything, and few stand on another command
            assert is_command(tree), f"{path.name} is neither a command (main) nor in the table of this test"
            allowed = COMMANDS_MAY_IMPORT.get(name, LIBRARY)
        assert ours <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(ours - allowed)}"


def test_mathematics_stands_on_torch_alone():
    for name, path, tree in modules():
        if name in ("lcm", "toy"):
            foreign = {dotted.split(".")[0] for dotted in imports(path, tree)}
            foreign -= {"torch", "anytext_lcm", *sys.stdlib_module_names}
            assert not foreign, f"{path.relative_to(PACKAGE)} imports {sorted(foreign)}"


def test_model_and_data_know_no_training():
    for name, path, tree in modules():
        found = {dotted.split(".")[0] for dotted in imports(path, tree)} & FORBIDDEN.get(name, set())
        assert not found, f"{path.relative_to(PACKAGE)} imports {sorted(found)}"


def test_the_package_exports_only_its_version():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert names == ["__version__"]
    assert len(tree.body) == 2, "a docstring and the version, nothing else"
