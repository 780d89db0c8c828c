"""Every command refuses what cannot be: exit code 2, one sentence on stderr, nothing on stdout, nothing written.

The network is the micro one; every refusal comes before its weights are read.
"""

import io
import json
import os
import shutil
from importlib import import_module

import pytest
from micro_network import micro_network
from PIL import Image

from anytext_lcm import command
from anytext_lcm.adapter.lora import attach, save_adapter
from anytext_lcm.adapter.stored import WEIGHTS_FILE
from anytext_lcm.model import loading, networks

FULL = str(networks.EMBEDDED_CONFIG.with_name("anytext2_sd15.yaml"))
LINE = "cat@4,10,60,40#yellow"
RECORD = {
    "img_name": "1.jpg",
    "caption": "a sign",
    "annotations": [{"polygon": [[40, 40], [440, 40], [440, 160], [40, 160]], "text": "HELLO", "valid": True}],
}
# A run of each command that would go through; {folder} holds the network, an adapter and a benchmark.
NETWORK = ["--config", "{folder}/micro.yaml", "--ckpt", "{folder}/micro.safetensors"]
TRAINED = ["--config", "{folder}/micro.yaml", "--teacher_ckpt", "{folder}/micro.safetensors", "--no-progress"]
GOOD = {
    "ablate": [*TRAINED[:4], "--output", "out"],
    "benchmark": [*NETWORK, "--adapter", "{folder}/adapter", "--data", "{folder}/test1k.json", "--output", "out"],
    "build_teacher": ["--work", "out"],
    "cache_latents": [*TRAINED, "--use_mock_dataset", "--latents", "out"],
    "data": [],
    "demo": ["--output", "out"],
    "evaluate": [*NETWORK, "--adapter", "none", "--lines", "2", "--output", "out"],
    "export": [*NETWORK, "--adapter", "{folder}/adapter", "--output", "out"],
    "inspect_modules": ["--config", "{folder}/micro.yaml", "--output", "out.txt"],
    "sample": [*NETWORK, "--adapter", "none", "--prompt", "a wall", "--line", LINE, "--output", "out.png"],
    "speed": ["--config", "{folder}/micro.yaml", "--device", "cpu", "--out", "out"],
    "train": [*TRAINED, "--use_mock_dataset", "--output_dir", "out"],
}

REFUSED = {
    "ablate": [
        (["--runs", "moon"], "no run moon"),
        (["--lines", "3"], "--lines must be 16 or more"),
        (["--teacher_ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ],
    "benchmark": [
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--adapter", "none"], "no student without"),
        (["--methods", "euler-4"], "unknown"),
        (["--negative_prompt", "a\udcff"], "The negative prompt 'a\\udcff' is not UTF-8"),
        (["--methods", "teacher-4", "--guidance_scale", "1", "--negative_prompt", "blur"], "no effect"),
        (["--words", "a\nb"], "The text of --words 'a\\nb' holds control characters"),
        (["--font", "nowhere.ttf"], "nowhere.ttf"),
        (["--font", "{folder}/pointer.ttf"], "pointer.ttf cannot be read"),
    ],
    "build_teacher": [
        (["--pictures", "99"], "--pictures must be 100 or more, not 99"),
        (["--start_from", "nowhere.safetensors"], "--start_from nowhere.safetensors does not exist"),
        (["--start_from", "{folder}/pointer.ttf"], "pointer.ttf"),
    ],
    "cache_latents": [
        (["--teacher_ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--data_list", "a.json"], "Both data sets were named"),
        (["--dataset_size", "0"], "--dataset_size must be an integer, at least 1"),
    ],
    "data": [
        ([], "command"),
        (["look"], "look"),
        (["preview"], "Name one data set"),
        (["preview", "--mock", "3", "--data_list", "a.json"], "Name one data set"),
        (["preview", "--data_list", "no.json"], "There is no file no.json"),
        (["preview", "--mock", "3", "--image_size", "100"], "multiple of 8"),
        (["preview", "--mock", "3", "--fonts", "no.ttf"], "--fonts has no effect on mock data"),
        (["preview", "--mock", "3", "--edit_share", "2"], "--edit_share has no effect on mock data"),
        (["preview", "--data_list", "no.json", "--rich"], "--rich has no effect on records"),
        (["preview", "--mock", "3", "--image_size", "4104"], "at most 4096"),
        (["preview", "--mock", "3", "--count", "101"], "--count must be at most 100, not 101"),
        (["preview", "--mock", str(2**63)], "--mock must be at most"),
        (["convert", "--mock", str(2**63), "--output", "x"], "--mock must be at most"),
        (["benchmark", "--records", str(2**63)], "--records must be at most"),
        (["preview", "--mock", "3", "--count", "0"], "--count: must be a whole number from 1 on, not '0'"),
        (["convert", "--output", "x"], "--mock N"),
        (["convert", "--mock", "2", "--output", "x", "--format", "gif"], "choose png or jpg"),
        (["benchmark", "--items", "0"], "--items: must be a whole number from 1 on, not '0'"),
    ],
    "demo": [(["--prompts", "1"], "2 or more")],
    "evaluate": [
        (["--lines", "1"], "2 or more"),
        (["--methods", "student-4"], "no student without an adapter"),
        (["--methods", "euler-4"], "unknown"),
        (["--methods", "teacher-0"], "1 to"),
        (["--adapter", "none", "none"], "stands alone"),
        (["--adapter", "none", "a b=c"], "stands alone"),
        (["--adapter", "{folder}/adapter", "a b={folder}/adapter"], "label"),
        (["--adapter", "{folder}/adapter", "a={folder}/adapter", "a={folder}/adapter"], "label"),
        (["--comparison", "--methods", "real"], "names the methods itself"),
        (["--sampling_seeds", "0"], "1 to 10"),
        (["--negative_prompt", "a\nb"], "The negative prompt 'a\\nb' holds control characters"),
    ],
    "export": [
        (["--adapter", "none"], "nothing to export"),
        (["--report", "nowhere.json"], "cannot be read"),
        (["--report", "{folder}/pipe.txt"], "pipe.txt cannot be read"),
        (["--report", "{folder}/deep.json"], "deep.json cannot be read"),
        (["--mix", "a@b"], "no number"),
        (["--adapter_scale", "nan"], "must lie in"),
    ],
    "inspect_modules": [
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--output", "{folder}"], "name a file"),
    ],
    "sample": [
        (["--line", "cat"], "where it goes"),
        (["--line", "cat@1,2,3"], "where it goes"),
        (["--line", "cat@10,40,60,50/north"], "where it goes"),
        (["--line", "cat@10,40,60,50/180"], "-90..90 degrees"),
        (["--line", "cat@50,40,10,60"], "is empty"),
        (["--line", "@10,40,60,60"], "text of a line is empty"),
        (["--line", "cat@10,40,60,60#mauve"], "Colour 'mauve' is unknown"),
        (["--line", "x" * 21 + "@10,40,60,60"], "limit is 20"),
        (["--line", "cat@10,40,518,60"], "leaves the picture"),
        (["--line", "cat@10,40,60,41"], "too small"),
        (["--line", "你好@10,40,60,60"], "no glyph"),
        (["--line", LINE, "--max_lines", "1"], "do not fit 1 slots"),
        (["--steps", "0"], "1 to"),
        (["--guidance_scale", "nan"], "guidance scale"),
        *((["--guidance_scale", value], "must lie in 1..100") for value in ("0", "-1", "0.99", "1e38", "inf")),
        *((["--w", value], "must lie in 1..100") for value in ("-1", "nan", "-0.5", "1e38")),
        (["--adapter", "{folder}/adapter", "--guidance_scale", "0"], "must lie in 1..100"),
        (["--prompt", "a\udcff"], "The prompt 'a\\udcff' is not UTF-8"),
        (["--prompt", "a\nb"], "control characters"),
        (["--negative_prompt", "a\udcff"], "The negative prompt 'a\\udcff' is not UTF-8"),
        (["--line", "\udcff@10,40,60,60"], "not UTF-8"),
        (["--line", "\u200b@10,40,60,60"], "is invisible"),
        (["--line", "cat@10,40," + "9" * 400 + ",60"], "lies beyond 30000 pixels"),
        (["--line", "cat@4294967300,4294967300,4294967350,4294967330"], "lies beyond 30000 pixels"),
        (["--line", "-50%@10,40,118,80"], "as in --line=-50%"),
        (["--max_lines", "1000000"], "--max_lines must be at most 100"),
        (["--width", "6400000"], "--width must be at most 2048 pixels"),
        (["--count", "1000000"], "--count must be at most 1000"),
        (["--fit"], "nothing to fit"),
        (["--mask_order", "right"], "--mask_order is of a mask's regions"),
        (["--image", "{folder}/large.png"], "is 100 x 80 pixels, not 64 x 64: say --fit"),
        (["--guidance_scale", "1", "--negative_prompt", "blur"], "no effect"),
        (["--w", "1", "--guidance_scale", "2"], "say the same"),
        (["--width", "100"], "--width must be a multiple of 16 pixels"),
        (["--height", "0"], "--height must be a multiple of 16 pixels"),
        (["--width", "-128"], "--width must be a multiple of 16 pixels"),
        (["--config", FULL, "--width", "520"], "--width must be a multiple of 64"),
        (["--config", FULL, "--height", "32"], "--height must be a multiple of 64"),
        (["--font", "nowhere.ttf"], "nowhere.ttf"),
        (["--font_hint", "nowhere.ttf"], "nowhere.ttf"),
        (["--font", "{folder}/pointer.ttf"], "pointer.ttf cannot be read"),
        (["--font_hint", "{folder}/pointer.ttf"], "pointer.ttf cannot be read"),
        (["--image", "nowhere.png"], "nowhere.png does not exist"),
        (["--image", __file__], "cannot be read"),
        (["--mask", "nowhere.png"], "nowhere.png does not exist"),
        (["--paste_back"], "nothing to paste back"),
        (["--output", "picture"], "ending of a picture"),
        (["--sampler", "gamma"], "teacher cannot be sampled by gamma"),
        (["--adapter", "{folder}/adapter", "--sampler", "ddim"], "student cannot be sampled by ddim"),
        (["--adapter", "{folder}/adapter", "--eta", "1"], "--eta is of the teacher's ddim"),
        (["--eta", "2"], "eta must lie in 0..1"),
        (["--gamma", "0.5"], "--gamma is of --sampler gamma alone"),
        (["--mix", "style"], "without adapters"),
        (["--batch", "a.json"], "--batch holds the prompts"),
    ],
    "speed": [
        (["--batch", "0"], "--batch: must be a whole number from 1 on, not '0'"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
    ],
    "train": [
        (["--teacher_ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--lora_rank", "0"], "--lora_rank must be an integer, at least 1 and at most 1024: 0 is not."),
        (["--lora_rank", "many"], "--lora_rank"),
        (["--seed", "-1"], "--seed must be an integer, at least 0 and at most 9223372036854775807: -1 is not."),
        (["--objective", "gan"], "--objective"),
        (["--estimate", "--train_batch_size", "0"], "--train_batch_size must be an integer, at least 1"),
        (["--estimate", "--lora_rank", "1000000"], "--lora_rank must be an integer, at least 1 and at most 1024"),
        (["--lora_rank", "99999999"], "--lora_rank must be an integer, at least 1 and at most 1024"),
        (["--image_size", "0"], "a positive multiple of 16 pixels, not 0"),
        (["--image_size", "1000000"], "at most 4096 pixels"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--output_dir", "x" * 300], "--output_dir is longer than a file system allows"),
        (["--output_dir", "a\0b"], "--output_dir has a NUL character"),
        (["--data_list", "x" * 300, "--no-use_mock_dataset"], "--data_list is longer than a file system allows"),
        *((["--lora_targets", f"{{folder}}/{name}.txt"], "cannot be read") for name in ("nowhere", "pipe")),
        (["--no-use_mock_dataset", "--data_list", "a.json", "--dataset_size", "5"], "no effect on records"),
        (["--fonts", "nope.ttf"], "--fonts has no effect on mock data"),
        (["--edit_share", "2"], "--edit_share must be a number, at least 0 and at most 1"),
        (["--edit_share", "0.5", "--strict"], "--edit_share, --strict has no effect on mock data"),
        (["--guidance_scale", "0"], "--guidance_scale must be a number, at least 1 and at most 100"),
        (["--guidance_scale", "nan"], "--guidance_scale must be"),
        (["--guidance_scale", "1e38"], "--guidance_scale must be"),
        (["--seed", "9" * 400], "--seed must be"),
        (["--negative_prompt", "\udcff"], "--negative_prompt is not UTF-8"),
    ],
}
# The same mistakes in many commands.
ADAPTERS, SEEDS = ("benchmark", "evaluate", "export", "sample"), ("ablate", "benchmark", "build_teacher", "demo")
CONFIGS = sorted(set(GOOD) - {"build_teacher", "data", "demo"})
OUTPUTS = {
    "ablate": "--output",
    "benchmark": "--output",
    "demo": "--output",
    "evaluate": "--output",
    "export": "--output",
    "inspect_modules": "--output",
    "sample": "--output",
    "speed": "--out",
}
NAMED = [("build_teacher", "--target"), ("build_teacher", "--work"), ("cache_latents", "--latents")]
COUNTS = [
    ("ablate", "--steps"),
    *(("benchmark", flag) for flag in ("--samples", "--limit")),
    *(("build_teacher", flag) for flag in ("--processes", "--steps")),
    *(("demo", flag) for flag in ("--steps", "--prompts")),
    ("inspect_modules", "--lora_rank"),
    *(("sample", flag) for flag in ("--count", "--max_lines")),
    *(("speed", flag) for flag in ("--rank", "--repeats", "--steps")),
]
CASES = [
    *((name, options, words) for name, cases in REFUSED.items() for options, words in cases),
    *((name, ["--no_such_flag"], "--no_such_flag") for name in GOOD if name != "data"),
    *((name, ["--config", "nowhere.yaml"], "nowhere.yaml") for name in CONFIGS),
    *((name, ["--config", "{folder}/wrong.yaml"], "wrong.yaml") for name in CONFIGS),
    *((name, ["--adapter", "nowhere"], "no adapter in nowhere") for name in ADAPTERS),
    *((name, ["--adapter", "{folder}/cut"], "is truncated or no safetensors file") for name in ADAPTERS),
    *((name, ["--adapter", "{folder}/piped"], "it is no regular file") for name in ADAPTERS),
    ("evaluate", ["--adapter", "{folder}/cut", "--dry_run"], "is truncated or no safetensors file"),
    *((name, ["--seed", "-1"], "--seed: must be a whole number from 0 on, not '-1'") for name in SEEDS),
    *((name, [flag, "0"], f"{flag}: must be a whole number from 1 on, not '0'") for name, flag in COUNTS),
    *((name, [flag, "x"], f"{flag}: must be a whole number from 1 on, not 'x'") for name, flag in COUNTS[:3]),
    *((name, [flag, "/dev/null/a.png"], "Nothing can be written to /dev/null") for name, flag in OUTPUTS.items()),
    *((name, ["--output", "."], "holds other files") for name in ("demo", "evaluate", "export")),
    *((name, [flag, ""], f"{flag}: must be a name") for name, flag in (*NAMED, *OUTPUTS.items())),
    ("data", ["convert", "--mock", "1", "--output", " "], "--output: must be a name, not ' '"),
    ("data", ["preview", "--mock", "1", "--output", ""], "--output: must be a name, not ''"),
]


@pytest.fixture(scope="module")
def folder(teacher):
    """The micro network, adapters (`cut` and `piped` are damaged), a benchmark of one picture, and wrong files."""
    save_adapter(attach(micro_network(), 2, 2), teacher / "adapter")
    for name in ("cut", "piped"):
        shutil.copytree(teacher / "adapter", teacher / name)
    whole = (teacher / "cut" / WEIGHTS_FILE).read_bytes()
    (teacher / "cut" / WEIGHTS_FILE).write_bytes(whole[:-1])
    (teacher / "piped" / WEIGHTS_FILE).unlink()
    os.mkfifo(teacher / "piped" / WEIGHTS_FILE)
    (teacher / "test1k.json").write_text(json.dumps({"data_root": ".", "data_list": [RECORD]}))
    os.mkfifo(teacher / "pipe.txt")
    (teacher / "deep.json").write_text("[" * 99_999)
    (teacher / "wrong.yaml").write_text("colour: red\n")
    Image.new("RGB", (100, 80)).save(teacher / "large.png")
    (teacher / "pointer.ttf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    return teacher


@pytest.mark.parametrize("name, options, words", CASES, ids=[f"{case[0]} {' '.join(case[1])}"[:60] for case in CASES])
def test_refused_in_one_sentence(name, options, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("the weights were read"))
    arguments = [word.replace("{folder}", str(folder)) for word in (*GOOD[name], *options)]
    module = import_module("anytext_lcm.data.__main__" if name == "data" else f"anytext_lcm.{name}")
    assert module.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and words in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["sample", "inspect_modules", "train", "cache_latents"])
def test_what_must_be_named(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert import_module(f"anytext_lcm.{name}").main([]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and ("required" in printed or "nothing to draw" in printed)
    assert list(tmp_path.iterdir()) == []


def fail(error):
    def work(args):
        raise error

    return work


def test_exit_codes(capsys):
    parser = command.new_parser("none", "Does nothing.")
    assert command.run(parser, lambda args: "done", []) == 0 and capsys.readouterr().out == "done\n"
    assert command.run(parser, lambda args: None, []) == 0 and capsys.readouterr().out == ""
    for error in (ValueError("bad"), OSError("bad"), FloatingPointError("bad")):
        assert command.run(parser, fail(error), []) == 2 and capsys.readouterr().err == "error: bad\n"
    assert command.run(parser, fail(ValueError("no \x1b[2Jfile\nb")), []) == 2
    assert capsys.readouterr().err == "error: no \\x1b[2Jfile\\nb\n"
    assert command.run(parser, fail(command.AlreadyReported()), []) == 2 and capsys.readouterr().err == ""
    with pytest.raises(KeyError):  # a fault of the program keeps its traceback
        command.run(parser, fail(KeyError("bug")), [])


@pytest.mark.parametrize("encoding, said", [("ascii", rb"in \xe9/\udcff"), ("utf-8", b"in \xc3\xa9/\\udcff")])
def test_a_path_that_the_terminal_cannot_show_is_escaped(encoding, said, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", out)
    assert command.run(command.new_parser("none", "Does nothing."), lambda args: "in é/\udcff", []) == 0
    assert out.buffer.getvalue() == said + b"\n"


def test_the_sentence_of_a_worker():
    text = "Caught ValueError in DataLoader worker process 0.\nTraceback (most recent call last):\nValueError: no file"
    assert command.in_words(ValueError(text)) == "no file"
    assert command.in_words(ValueError("two\nlines")) == r"two\nlines"


def test_a_batch_with_a_byte_order_mark_is_read(tmp_path):
    from anytext_lcm.drawing.jobs import read_batch

    path = tmp_path / "batch.json"
    path.write_text(json.dumps([{"prompt": "a wall", "lines": [LINE]}]), encoding="utf-8-sig")
    [(prompt, seed)] = read_batch(str(path), 3, None)
    assert prompt.caption == "a wall" and seed == 3
