"""What documents name exists: files, links, anchors, commands, flags, make targets, Python names, figures."""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import json
import keyword
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import documents
import pytest
import readme_parts
from accelerate.commands.launch import launch_command_parser

from anytext_lcm.drawing.methods import parse_method
from anytext_lcm.training.recipes import RUNS
from anytext_lcm.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "anytext_lcm"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMING = [*readme_parts.documents(), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [ROOT / "CONTRIBUTING.md", *readme_parts.documents(), *sorted((ROOT / "docs").glob("*.md"))]
LINKING += [ROOT / "tests" / "reference" / "README.md", *NOTEBOOKS]
WITH_COMMANDS = [*readme_parts.READMES.values(), readme_parts.CARD, readme_parts.STORED / "RESULTS.md"]
WITH_COMMANDS.append(ROOT / "docs" / "yardstick.md")
# The diary names what has left the package, with the commit that held it.
NAMING.remove(readme_parts.STORED / "diary.md")

# Files of a reader's own, in examples.
EXAMPLES = set("data.json mine.json mine.yaml mine.ckpt photo.jpg PHOTO.jpg mask.png prompts.json ARIAL.ttf".split())
EXAMPLES |= set("teacher.png many.png open.png sale.png style.safetensors".split())
EXAMPLES |= set("laion_word/test1k.json wukong_word/test1k.json".split())
FOREIGN_COMMANDS = ("ruff", "pip", "conda", "tensorboard", "git", "apt-get", "jupyter")
ENDINGS = "py|md|json|png|ipynb|yaml|yml|toml|lock|txt|ckpt|safetensors|cfg|ttf|pt"
FLAG = r"(?<![a-zA-Z0-9_-])--[a-z][a-z_0-9]*"  # not \w, which has Chinese characters too
IDENTIFIER = r"[A-Za-z_][\w.]*\w(\(\))?"
PLACEHOLDER = re.compile(r"-m anytext_lcm\.(…|\.\.\.|NAME)")
# What a document names although it is gone. An entry goes with the sentence that names it.
GONE: dict[str, list[str]] = {}


@functools.cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by what follows `python`."""
    found = {}
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if hasattr(module, "build_parser"):
            name = module.__name__.removesuffix(".__main__")
            found[f"-m {name}"] = module.build_parser()
    script = ROOT / "notebooks" / "perfect_teacher.py"
    return found | {f"notebooks/{script.name}": load(script).build_parser()}


def load(path: Path):
    """The module in a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Its flags and those of its sub-commands."""
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(flags, action.choices.values()))
    return found


@functools.cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@functools.cache
def vocabulary() -> set[str]:
    """Every word in the code of package and notebooks: names, attributes, and what strings say."""
    words = set(keyword.kwlist)
    for folder in ("anytext_lcm", "notebooks"):
        for path in (ROOT / folder).rglob("*.py"):
            words.update(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for field in ("id", "attr", "arg", "name", "module", "asname"):
                    if isinstance(getattr(node, field, None), str):
                        words.update(getattr(node, field).split("."))
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words.update(re.findall(r"\w+", node.value))
    for path in (ROOT / "models_yaml").glob("*.yaml"):
        words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return words


@functools.cache
def file_names() -> set[str]:
    """Names of the repository's files, and of those that its code writes or reads."""
    said = set()
    for path in PACKAGE.rglob("*.py"):
        said.update(re.findall(r"[\w.-]+\.[a-z]+\b", path.read_text(encoding="utf-8")))
    kept = [path for path in ROOT.rglob("*") if not set(path.relative_to(ROOT).parts) & {".venv", "build", "outputs"}]
    return said | {path.name for path in kept}


def missing_file(document: Path, name: str) -> bool:
    """Whether a name that looks like a file's or a folder's belongs to none."""
    places = (ROOT, document.parent, PACKAGE, ROOT / "notebooks", ROOT / "tests")
    if name in EXAMPLES or any(list(place.glob(name)) for place in places):
        return False
    if name.startswith("models/"):  # where the checkpoint is looked for
        return False
    if name.startswith("outputs/"):  # a folder of a reader's own choice, then what commands write there
        return not {part.rsplit("-", 1)[0] for part in name.rstrip("/").split("/")[2:]} <= vocabulary() | file_names()
    return "/" in name.rstrip("/") or name.rstrip("/") not in file_names() | vocabulary()


def unknown_flags(words: list[str], known: set[str]) -> list[str]:
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    return sorted(given - known)


@functools.cache
def choices() -> dict[str, set[str]]:
    """Flag -> its values, of the flags that take no others."""
    found: dict[str, set[str]] = {}
    for parser in parsers().values():
        for action in parser._actions:
            if action.choices and action.option_strings:
                found.setdefault(action.option_strings[0], set()).update(map(str, action.choices))
    return found


def missing_values(words: list[str]) -> list[str]:
    """Words of a command that look like files and are none; values that a flag does not take."""
    files = [word for word in words if re.fullmatch(rf"[\w./-]+\.({ENDINGS})", word)]
    pairs = [(flag, value) for flag, value in zip(words, words[1:], strict=False) if flag in choices()]
    wrong = [f"{flag} {value}" for flag, value in pairs if value not in choices()[flag] and re.fullmatch(r"\w+", value)]
    return wrong + [name for name in files if missing_file(ROOT / "README.md", name)]


def unknown_in_command(line: str) -> list[str]:
    """What a line of shell names that does not exist."""
    if found := re.match(r"(?:[A-Z_]+=\S+ )*make (?:[A-Z]+=\S+ )*([a-z-]+)", line):
        return [] if found[1] in make_targets() else [f"make {found[1]}"]
    found = re.search(r"-m anytext_lcm[.\w]*|[\w./-]+\.py\b", line)
    if not found or PLACEHOLDER.search(line):
        return []
    before, words = line[: found.start()].split(), re.split(r"[\s`]+", line[found.end() :])
    unknown = missing_values(words)
    if before[:2] == ["accelerate", "launch"]:
        unknown += unknown_flags(before, flags(launch_command_parser()))
    if found[0] not in parsers():
        return unknown + ([] if (ROOT / found[0]).exists() else [found[0]])
    return unknown + unknown_flags(words, flags(parsers()[found[0]]))


def unknown_in_span(document: Path, span: str) -> list[str]:
    """What inline code names that does not exist."""
    first = span.split()[0] if span.split() else ""
    if first in ("make", "python", "accelerate"):
        return unknown_in_command(span)
    if first in FOREIGN_COMMANDS or first == "-c":
        return missing_values(span.split())
    if " " in span and f"-m anytext_lcm.{first}" in parsers():
        return missing_values(span.split()) + unknown_flags(span.split(), flags(parsers()[f"-m anytext_lcm.{first}"]))
    if re.fullmatch(rf"[\w.*/-]*\w[\w.*/-]*(/|\.({ENDINGS}))", span) or re.fullmatch(r"\w[\w*/-]*/|outputs/\S*", span):
        return [span] if missing_file(document, span) else []
    if re.fullmatch(r"anytext_lcm(\.\w+)+(\(\))?", span):
        return [] if importable(span.removesuffix("()")) else [span]
    if re.fullmatch(IDENTIFIER, span) and not re.search(r"\d\.\d", span):
        return [] if set(span.removesuffix("()").split(".")) <= vocabulary() | file_stems() else [span]
    known = set().union(*map(flags, parsers().values()))
    return missing_values(span.split()) + unknown_flags(re.findall(FLAG, span), known)


def unknown_in_prose(document: Path, text: str) -> list[str]:
    """What plain text, outside code, names that does not exist: files with their endings, flags, commands."""
    named = re.findall(rf"(?<![\w/.])[\w./-]*\w\.(?:{ENDINGS})\b", text)
    unknown = [name for name in named if missing_file(document, name)]
    flagged = [word for word in re.findall(FLAG, text)]
    commands = [line for line in re.findall(r"-m anytext_lcm[.\w]*", text) if not PLACEHOLDER.search(line)]
    unknown += [command for command in commands if command not in parsers()]
    return unknown + unknown_flags(flagged, set().union(*map(flags, parsers().values())))


def importable(name: str) -> bool:
    """Whether a dotted name is a module or what one holds."""
    try:
        return bool(pkgutil.resolve_name(name))
    except (ImportError, AttributeError):
        return False


@functools.cache
def file_stems() -> set[str]:
    return {part for name in file_names() for part in name.split(".")}


@pytest.mark.parametrize("path", [*NAMING, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(path):
    """Cells of a notebook bind names of their own, so that bare names there are not looked up."""
    spans = [s for s in documents.spans(path) if path.suffix == ".md" or not re.fullmatch(IDENTIFIER, s)]
    unknown = [name for span in spans for name in unknown_in_span(path, span)]
    unknown += [name for line in documents.shell_lines(path) for name in unknown_in_command(line)]
    unknown += unknown_in_prose(path, documents.prose(path))
    assert sorted(set(unknown)) == GONE.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_parsed(path):
    """With all that they need, values of the right kind, and methods and runs that there are."""
    lines = [line for line in documents.shell_lines(path) if "-m anytext_lcm" in line and not PLACEHOLDER.search(line)]
    assert lines
    for line in lines:
        _, module, *words = shlex.split(line[line.index("-m anytext_lcm") :])
        args = parsers()[f"-m {module}"].parse_args(words)
        for name in getattr(args, "methods", None) or ():
            parse_method(name)
        assert set(getattr(args, "runs", ())) <= set(RUNS)


@pytest.mark.parametrize(
    "span",
    [
        "make demos",
        "--lora_ranks",
        "sample --stepz 4",
        "python -m anytext_lcm.samples",
        "python -m anytext_lcm.sample --prompt x --lines y",
        "python notebooks/perfect_student.py",
        "anytext_lcm/lcm/solver.py",
        "lcm/nothing/",
        "reports.json",
        "anytext_lcm.sample.read_setting",
        "load_adapterz()",
        "python -m anytext_lcm.sample --config anytext2_sd16.yaml",
        "--sampler determinist",
        "accelerate launch --multi_gpus -m anytext_lcm.train",
        "train --run outputs/run/runs.yaml",
        "outputs/run/chekpoint-50000",
        "tensorboard --logdir outputs/run/lags.txt",
        "conda env create -f environments.yml",
        "-c requirement.lock",
    ],
)
def test_a_name_that_does_not_exist_is_found(span):
    assert unknown_in_span(ROOT / "README.md", span)


@pytest.mark.parametrize(
    "sentence",
    [
        "See notes.md.",
        "用--lora_ranks 4。",
        "as lcm/nothing.py does",
        "with --lora_ranks 4",
        "run python -m anytext_lcm.samples first",
    ],
)
def test_a_sentence_that_names_what_does_not_exist_is_found(sentence):
    assert unknown_in_prose(ROOT / "README.md", sentence)
    assert not unknown_in_prose(ROOT / "README.md", "RESULTS.md, lcm/steps.py, --lora_rank, -m anytext_lcm.sample")


@pytest.mark.parametrize("path", readme_parts.READMES.values(), ids=lambda path: path.name)
def test_an_example_of_records_has_keys_that_are_read(path):
    examples = [json.loads(token.content) for token in documents.tokens(path) if token.info == "json"]
    assert examples
    keys = re.findall(r'"(\w+)":', json.dumps(examples))
    assert set(keys) <= vocabulary(), set(keys) - vocabulary()


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in documents.links(path):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        if anchor:
            assert anchor in documents.anchors(target), link


def test_every_flag_has_its_reason_in_the_help_and_on_the_site():
    """The documents hold no list of settings: these two places do."""
    page = load(ROOT / "docs" / "conf.py").settings_pages()
    sections = {text.split("\n")[0].split(".")[-1]: text for text in page.split("\n## ")}
    for command, parser in parsers().items():
        if command.startswith("-m "):
            section = sections[command.split(".")[-1]]
            assert {flag for flag in flags(parser) - {"-h", "--help"} if f"`{flag}`" not in section} == set(), command
            silent = [action.dest for action in parser._actions if action.option_strings and not action.help]
            assert not silent, command
    rows = {found[1]: found[2] for found in re.finditer(r"^\| `(--\w+)`[^|]* \| (.*) \|$", sections["train"], re.M)}
    for setting in dataclasses.fields(TrainSettings):
        reason = setting.metadata["help"]
        assert reason and re.sub(r"\\(.)", r"\1", rows[f"--{setting.name}"]).startswith(reason), setting.name
