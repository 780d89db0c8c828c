"""Markdown as its readers meet it: links, anchors, code and prose of documents and of notebooks' cells."""

import functools
import json
import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]


@functools.cache
def source(path: Path) -> str:
    """The Markdown of a document, or of all Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


@functools.cache
def tokens(path: Path) -> list[Token]:
    """Blocks and, flat among them, what stands in their lines."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(source(path)):
        found += [token, *(token.children or [])]
    return found


def links(path: Path) -> list[str]:
    """Targets of links and pictures, those in raw HTML too."""
    html = "".join(token.content for token in tokens(path) if token.type.startswith("html"))
    attributes = [token.attrGet(name) for token in tokens(path) for name in ("href", "src")]
    return [link for link in attributes if link] + re.findall(r"(?:href|src)=\"([^\"]+)\"", html)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub and the site give to the headings; a repeated one is numbered."""
    seen: dict[str, int] = {}
    found = set()
    for before, token in zip(tokens(path), tokens(path)[1:], strict=False):
        if before.type == "heading_open":
            title = "".join(child.content for child in token.children or [])
            name = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if name in seen else name)
            seen[name] = seen.get(name, 0) + 1
    return found


def spans(path: Path) -> list[str]:
    """The contents of inline code."""
    return [token.content for token in tokens(path) if token.type == "code_inline"]


def shell_lines(path: Path) -> list[str]:
    """The commands in blocks of shell, each on one line, without comments."""
    blocks = [t.content for t in tokens(path) if t.type == "fence" and t.info.strip() in ("bash", "sh", "console", "")]
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s)#\s.*", "", raw).strip() for raw in joined.splitlines()) if line]


def prose(path: Path) -> str:
    """Plain text without code and link targets."""
    return " ".join(token.content for token in tokens(path) if token.type == "text")
