"""The READMEs say what the package does: settings, quoted sentences, commands, links, in both languages."""

import ast
import json
import re
from pathlib import Path

import pytest
import readme_parts

ROOT = Path(__file__).parents[1]
RESULTS = readme_parts.RESULTS.read_text(encoding="utf-8")
TEXTS = {language: path.read_text(encoding="utf-8") for language, path in readme_parts.READMES.items()}


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)]


def strings() -> list[str]:
    """Every text in the package's code, holes of f-strings as an ellipsis."""
    found = []
    for path in sorted((ROOT / "anytext_lcm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("language", TEXTS)
def test_every_setting_stands_there_with_its_default(language):
    """Run `python tests/readme_parts.py` after a change of TrainSettings."""
    rows = readme_parts.part(TEXTS[language], "settings").splitlines()[2:]
    if language == "en":
        assert rows == readme_parts.settings_rows()
    else:
        reasons = readme_parts.reasons_of(TEXTS[language])
        assert rows == readme_parts.settings_rows(reasons)
        assert all(re.search("[\u4e00-\u9fff]", reason) for reason in reasons.values()), "a reason is not translated"


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


@pytest.mark.parametrize("language", [*TEXTS, "results"])
def test_links_and_modules_exist(language):
    text = (TEXTS | {"results": RESULTS})[language]
    for place, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
        within = (ROOT / place).read_text(encoding="utf-8") if place else text
        titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", within, flags=re.S), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target
    for name in set(re.findall(r"-m anytext_lcm\.(\w+)", text)):
        assert any((ROOT / "anytext_lcm" / place).exists() for place in (f"{name}.py", f"{name}/__main__.py")), name
    for target in set(re.findall(r"^make ([a-z-]+)", text, re.M)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), target


def test_both_languages_have_the_same_form():
    """As many headings of each depth in the same order, the same commands, the same pictures."""
    english, chinese = TEXTS.values()
    assert headings(english) == headings(chinese)
    for pattern in (r"!\[[^]]*\]\(([^)]*)\)", r"python -m anytext_lcm\.(\w+)", r"`(--\w+)"):
        assert set(re.findall(pattern, english)) == set(re.findall(pattern, chinese)), pattern


def test_what_was_measured_is_the_same_everywhere():
    """The rows of both READMEs are rows of RESULTS.md, and its numbers those that notebook 05 draws."""
    report = json.loads(readme_parts.MEASURED.read_text(encoding="utf-8"))
    assert readme_parts.part(RESULTS, "results").splitlines() == readme_parts.results(report)
    for text in TEXTS.values():
        assert readme_parts.part(text, "results").splitlines() == readme_parts.first_page(report)
        rows = readme_parts.part(text, "speed").splitlines()
        assert len(rows) > 10 and rows == readme_parts.part(RESULTS, "speed").splitlines()[: len(rows)]


def test_parts_are_put_between_their_marks():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert readme_parts.put(text, "x", ["new", "line"]) == "a\n<!-- x -->\nnew\nline\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="missing"):
        readme_parts.part(text, "y")
