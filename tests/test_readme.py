"""Both READMEs have the same form, and quote what the package says."""

import ast
import functools
import re
from pathlib import Path

import pytest
import readme_parts

ROOT = Path(__file__).parents[1]
TEXTS = {language: path.read_text(encoding="utf-8") for language, path in readme_parts.READMES.items()}


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)]


@functools.cache
def strings() -> tuple[str, ...]:
    """Every text in the package's code, holes of f-strings as an ellipsis."""
    found = []
    for path in sorted((ROOT / "anytext_lcm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("language", TEXTS)
def test_what_is_quoted_is_what_the_package_says(language):
    """The middle column of the table of troubles; an ellipsis stands for a hole or for what is left out."""
    heading = {"en": "## Troubleshooting", "zh": "## 疑难解答"}[language]
    table = TEXTS[language].split(heading)[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    quotes = [quote for row in rows for quote in re.findall('[“"](.+?)[”"]', row[1])]
    assert len(quotes) >= 12
    said = "\n".join(strings())
    for quote in quotes:
        for piece in quote.split("…"):
            assert piece.strip() in said, quote


def test_both_languages_have_the_same_form():
    """As many headings of each depth in the same order; the same code, links, pictures, formulas and numbers."""
    english, chinese = TEXTS.values()
    assert headings(english) == headings(chinese)
    blocks = [re.findall(r"```.*?```", re.sub(r" +# .*", "", text), re.S) for text in (english, chinese)]
    assert blocks[0] == blocks[1]
    for pattern in (
        r"!\[[^]]*\]\(([^)]*)\)",
        r"\]\(((?!README)[^)]*)\)",
        r"(?<!`)`([^`\n]+)`(?!`)",
        r"<!-- = (\S+)",
        r"\$\$[^$]+\$\$|\$[^$]+\$",
        r"(?<![\w.])\d[\d,.]*\d(?![\w.])",
    ):
        found = [sorted(re.findall(pattern, text)) for text in (english, chinese)]
        assert found[0] == found[1], pattern
