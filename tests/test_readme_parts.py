"""Figures and tables in the documents are those that are stored."""

import json
import re

import documents
import pytest
import readme_parts

INTERVAL = {"value": 0.92345, "low": 0.9, "high": 0.94}
REPORT = {"methods": {"student-4": {"accuracy": INTERVAL}}, "panel": {"lines": 512}, "pairs": [{"student": "s"}]}
# How many numbers with a fraction may stand outside marks, where nothing holds them to what was measured: versions,
# names and figures of before. A document that is not named here has none.
UNMARKED = {"README.md": 8, "README.zh-CN.md": 8, "anytext_lcm/assets/README.md": 3}
DOCUMENTS = {str(path.relative_to(readme_parts.ROOT)): path for path in readme_parts.documents()}
DIARY = "notebooks/measured/diary.md"  # holds numbers of the day, which no report has any more


def unmarked(path):
    """Numbers with a fraction in the text outside marks and code."""
    text = documents.source(path)
    for pattern in (readme_parts.BLOCK, readme_parts.FIGURE, r"```.*?```|`[^`\n]*`|\]\([^)]*\)"):
        text = re.sub(pattern, "", text, flags=re.S) if isinstance(pattern, str) else pattern.sub("", text)
    return re.findall(r"(?<![\w.:/-])\d+\.\d+(?![\w.])", text)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A folder of stored numbers with one report, and the path of a document beside it."""
    monkeypatch.setattr(readme_parts, "STORED", tmp_path)
    monkeypatch.setattr(readme_parts, "ROOT", tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps(REPORT))
    return tmp_path / "document.md"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_parts_are_made_anew(name):
    """After a change of a stored number run `make readme`."""
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    assert readme_parts.renew(DOCUMENTS[name], text) == text


@pytest.mark.parametrize("name", sorted(DOCUMENTS.keys() - {DIARY}))
def test_no_more_numbers_stand_outside_marks(name):
    found = unmarked(DOCUMENTS[name])
    assert len(found) <= UNMARKED.get(name, 0), f"mark what was measured, as tests/readme_parts.py says: {found}"


def test_a_number_is_written_from_its_path(stored):
    said = (
        "x <!-- = comparison/methods/student-4/accuracy -->?<!-- / --> of "
        "<!-- = comparison/panel/lines d -->\n<!-- / -->"
    )
    new = readme_parts.renew(stored, said)
    assert re.sub("<.*?>", "", new) == "x 0.923 [0.90, 0.94] of 512"
    assert readme_parts.renew(stored, new) == new
    assert readme_parts.number("comparison/methods/student-4/accuracy/value", ".2f") == "0.92"
    assert readme_parts.number("comparison/pairs/0/student") == "s"


@pytest.mark.parametrize(
    "said, words",
    [
        ("x <!-- = comparison/methods/student-5/accuracy --><!-- / -->", "student-5/accuracy is not a number"),
        ("x <!-- = comparison/methods --><!-- / -->", "is not a number"),
        ("x <!-- = speed/x --><!-- / -->", "speed.json is missing"),
        ("a\n<!-- = comparison/panel/lines d -->512<!-- / -->", "a line begins with the mark of a number"),
        ("1. a\n   <!-- = comparison/panel/lines d -->512<!-- / -->", "a line begins with the mark of a number"),
        ("<!-- = comparison/panel/lines d -->512", "not in pairs"),
        ("<!-- methods comparison -->\n", "not in pairs"),
        ("<!-- rows comparison -->\n<!-- /rows -->", "marks of the name rows"),
        (
            "<!-- methods comparison | student-5 -->\n<!-- /methods -->",
            "document.md: comparison.json has no method student-5",
        ),
    ],
)
def test_a_mark_that_cannot_be_filled_is_an_error(stored, said, words):
    with pytest.raises(ValueError, match=words):
        readme_parts.renew(stored, said)


def test_chosen_rows_and_columns():
    """Of the stored comparison; a number of the table is the number of the report."""
    table = readme_parts.methods("comparison", "teacher-50, student-4", "method, lines right")
    lines = table.splitlines()
    accuracy = readme_parts.stored("comparison")["methods"]["student-4"]["accuracy"]["value"]
    assert lines[0] == "| method | lines right |" and len(lines) == 4
    assert lines[3].startswith(f"| **student-4** | {accuracy:.3f} [")
    with pytest.raises(ValueError, match="no column reads"):
        readme_parts.methods("comparison", "", "method; reads")


def test_a_table_of_ablations(stored):
    """Chosen runs and columns, and what stands below the table."""
    chosen = ("ablations", "default, Huber", "run; kernel distance, 8 steps")
    with pytest.raises(ValueError, match="ablations.json is missing"):
        readme_parts.ablations(*chosen)
    kernel = {"distribution": {"kernel": INTERVAL, "kernel_floor": INTERVAL}}
    read = {steps: {"accuracy": INTERVAL, "retention": INTERVAL, "ned": INTERVAL, **kernel} for steps in "48"}
    runs = {name: {"updates": 2, "read": read} for name in ("rank 4", "default", "Huber")}
    report = {"runs": runs, "panel": {"lines": 20, "prompts": 15}, "teacher": read["4"]}
    (stored.parent / "ablations.json").write_text(json.dumps(report))
    head, _, *rows, empty, below = readme_parts.ablations(*chosen).splitlines()
    assert head == "| run | kernel distance, 8 steps |" and not empty and below.startswith("20 lines of 15 prompts")
    assert rows == [f"| {name} | 0.923 [0.900, 0.940] |" for name in ("default", "Huber")]
    for wrong, words in ((("rank 5", ""), "no run rank 5"), (("", "run; speed"), "no column speed")):
        with pytest.raises(ValueError, match=words):
            readme_parts.ablations("ablations", *wrong)


def test_what_a_folder_holds_is_stored(stored, tmp_path, monkeypatch):
    """Without lists of what was read; a name of one's own keeps the pictures that are there."""
    monkeypatch.setattr(readme_parts, "documents", lambda: [stored])
    stored.write_text("n <!-- = other/n d -->1<!-- / -->")
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"n": 7, "read": ["a", "b"], "rows": {"read": {}}}))
    readme_parts.main([f"other={folder}"])
    assert json.loads((tmp_path / "other.json").read_text()) == {"n": 7, "rows": {"read": {}}}
    assert stored.read_text() == "n <!-- = other/n d -->7<!-- / -->"
    with pytest.raises(SystemExit, match="holds nothing measured"):
        readme_parts.main([str(tmp_path)])


def test_the_table_of_exported_files(stored, tmp_path):
    """A row says in which sampler a file was drawn with; a measure that was not taken is a dash."""
    method = {"name": "student-4", "sampler": "lcm", "steps": 4, "spacing": ""}
    row = {"loaded": "peft", "method": method, "evaluations": 4, "accuracy": INTERVAL}
    row |= dict.fromkeys(("objects_obeyed", "ink_obeyed", "distribution", "same_noise"))
    folder = tmp_path / "measured"
    folder.mkdir()
    report = {"config": "c.yaml", "prompts": 3, "lines": 5, "seed": 0, "hardware": {}, "rows": [row]}
    (folder / "exports.json").write_text(json.dumps(report))
    assert readme_parts.measured(folder) == ("exports", report)
    (tmp_path / "exports.json").write_text(json.dumps(report))
    full = readme_parts.renew(stored, "<!-- exports exports -->\n<!-- /exports -->")
    assert "c.yaml: 3 held-out prompts, 5 lines" in full
    assert "| peft | LCM, 4 steps | 4 | 0.923 [0.90, 0.94] | – | – | – |" in full
    assert readme_parts.renew(stored, full) == full


def test_a_table_of_objectives_pools_the_trainings(stored, tmp_path):
    """The mean of the trainings, and an interval that holds each one's."""
    import objectives

    def row(value):
        return {
            "evaluations": 1,
            "seconds": {"denoise": 0.5},
            "accuracy": {"value": value, "low": 0.1, "high": value + 0.1},
        }

    plan = {"objectives": ["lcm"], "seeds": [0, 1], "prompts": 9, "noises": 2, "updates": 3}
    chosen = {
        f"teacher-{n}{rival}": f"teacher-{n}{rival}-karras" for n in objectives.STEPS for rival in objectives.RIVALS
    }
    found = {"plan": plan, "chosen": chosen, "hardware": {"cpu": "some CPU", "cores": 2}, "methods": {}}
    names = [name for cells in objectives.rows_of(found).values() for cell in cells for name in cell]
    found["methods"] = {
        name: row(0.5 if name.endswith("-1") else 0.4) for name in [*names, "teacher-50", "real", "reconstruction"]
    }
    (tmp_path / "objectives.json").write_text(json.dumps(found))
    mark = "<!-- objectives objectives | lines right | teacher, unipc; lcm, deterministic -->\n<!-- /objectives -->"
    head, _, first, second = readme_parts.renew(stored, mark).splitlines()[1:-1]
    assert head == "|  | 1 evaluation | 2 evaluations | 4 evaluations | 8 evaluations | 16 evaluations |"
    assert first.startswith("| teacher, unipc | – | 0.40 [0.10, 0.50] |")
    assert second.startswith("| lcm, deterministic | 0.45 [0.10, 0.60] | 0.45")
    whole = readme_parts.renew(stored, "<!-- all_objectives objectives -->\n<!-- /all_objectives -->")
    assert "### lines right" in whole and "### objects" not in whole
    assert "| 0.400 [0.100, 0.500]; 0.500 [0.100, 0.600] |" in whole and "some CPU, 2 cores" in whole
    for wrong in ("letters", "lines right | pcm, lcm"):
        with pytest.raises(ValueError, match="document.md: no such table"):
            readme_parts.renew(stored, f"<!-- objectives objectives | {wrong} -->\n<!-- /objectives -->")
