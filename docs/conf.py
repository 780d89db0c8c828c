"""How Sphinx builds the site from the documents and notebooks where they lie: `make site`.

The source folder is the repository's root, so that every relative link means the same on the site and in a checkout.
A link to a file that is not a page, as to a module, leads to a copy of that file in the site.
"""

import argparse
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the commands of this checkout, wherever it is installed from

project = html_title = "anytext_lcm"
root_doc = "README"
COMMANDS = "docs/commands"
CONTENTS = """
```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/[0-9][0-9]_*
```

```{toctree}
:hidden:
:caption: Documents
:glob:

docs/commands
docs/yardstick
notebooks/measured/RESULTS
notebooks/measured/*
anytext_lcm/assets/README
CONTRIBUTING
中文 <README.zh-CN>
```
"""
"""What the sidebar lists; the README itself has no such list."""

extensions = ["myst_nb"]
include_patterns = [
    "README*.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "anytext_lcm/assets/README.md",
    "notebooks/[0-9][0-9]_*.ipynb",
    "notebooks/measured/*.md",
]
exclude_patterns = ["**/.*", ".*", "build", "outputs", "tests"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4  # the anchors that GitHub gives
nb_execution_mode = "off"  # the stored outputs are shown
smartquotes = False  # two hyphens begin a flag

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


def literal(text: str) -> str:
    """Plain text as Markdown: every sign of punctuation stands for itself."""
    return re.sub(r"([^\w\s])", r"\\\1", " ".join(text.split()))


def flag_rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table of the parser's flags with their help, then a section for each sub-command."""
    yield from (literal(parser.description or ""), "", "| flag | what it does |", "|---|---|")
    formatter, subcommands = parser._get_formatter(), {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            subcommands = action.choices
        elif not isinstance(action, argparse._HelpAction):
            names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
            words = formatter._expand_help(action)
            if action.choices:
                words += "; one of " + ", ".join(map(str, action.choices))
            if action.required:
                words += " (needed)"
            elif "default" not in words and action.default not in (None, False, argparse.SUPPRESS):
                words += f" (default: {action.default})"
            yield f"| {names} | {literal(words)} |"
    for name, subcommand in subcommands.items():
        yield from ("", f"### {parser.prog.split('.')[-1]} {name}", "", *flag_rows(subcommand))


def settings_pages() -> str:
    """The flags of all commands, from their parsers: files at the package's root and folders that run."""
    lines = []
    package = ROOT / "anytext_lcm"
    for path in sorted([*package.glob("*.py"), *package.glob("*/__main__.py")]):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if hasattr(module, "build_parser"):
            parser = module.build_parser()
            lines += ["", f"## {parser.prog.split('.')[-1]}", "", f"`{parser.prog}`", "", *flag_rows(parser)]
    return "\n".join(lines) + "\n"


def prepare(app: Sphinx, page: str, content: list[str]) -> None:
    """Append the contents to the first page and the settings to theirs; fold the cells that JupyterLab folds."""
    if page == root_doc:
        content[0] += CONTENTS
    elif page == COMMANDS:
        content[0] += settings_pages()
    elif Path(app.env.doc2path(page)).suffix == ".ipynb":
        notebook = json.loads(content[0])
        for cell in notebook["cells"]:
            if cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"].setdefault("tags", []).append("hide-input")
        content[0] = json.dumps(notebook)


def inline_formula(writer: HTML5Translator, node: nodes.math) -> None:
    """Write MathML, which browsers draw without a script or a font."""
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def block_formula(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write MathML on a line of its own."""
    writer.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise nodes.SkipNode


def finish(app: Sphinx, error: Exception | None) -> None:
    """Let the site begin with the README."""
    if error is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", prepare)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
