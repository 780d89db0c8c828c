"""`run.yaml`: what a run writes of its settings, and what `train --run` makes of it."""

from dataclasses import asdict, fields

import pytest
import yaml
from processes import NoisyPictures
from test_resume import options

from anytext_lcm import train
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.run_file import LEFT_OUT, RUN_FILE, read_run, write_run
from anytext_lcm.training.settings import TrainSettings


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    """The folder of a run of one update."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_distillation(options(teacher, folder, max_train_steps=1, negative_prompt="${a} é"), None, NoisyPictures())
    return folder


def test_a_run_leaves_its_settings_as_used(teacher, trained):
    written = yaml.safe_load((trained / RUN_FILE).read_text(encoding="utf-8"))
    used = TrainSettings.from_dict(options(teacher, trained, max_train_steps=1, negative_prompt="${a} é"))
    expected = asdict(used) | {"num_workers": 0, "lora_targets": list(used.lora_targets)}
    assert written == {name: value for name, value in expected.items() if name not in LEFT_OUT}
    assert set(written) == {found.name for found in fields(TrainSettings)} - set(LEFT_OUT)


def test_what_is_written_is_read_back(trained):
    found = read_run(trained / RUN_FILE)
    again = TrainSettings.from_dict(found)
    assert again.lora_targets == ("zero_convs", "unet_attnx") and again.negative_prompt == "${a} é"
    before = (trained / RUN_FILE).read_bytes()
    assert write_run(again).read_bytes() == before


def test_flags_win_over_the_file(trained, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "anytext_lcm.training.loop.run_distillation", lambda settings: seen.append(settings) or tmp_path
    )
    monkeypatch.setattr("anytext_lcm.checks.everything.require_inputs", lambda settings: None)
    file = str(trained / RUN_FILE)
    assert train.main(["--run", file, "--learning_rate", "0.5", f"--output_dir={tmp_path}", "--progress"]) == 0
    [settings] = seen
    changed = {"learning_rate": 0.5, "output_dir": str(tmp_path), "progress": True}
    assert settings == read_run(file) | changed


def test_a_repeated_run_is_the_same_run(teacher, trained, tmp_path):
    """From the file alone, to the last bit."""
    settings = read_run(trained / RUN_FILE) | {"output_dir": str(tmp_path / "again")}
    run_distillation(settings, None, NoisyPictures())
    one, other = (folder / "checkpoint-1" / "adapter_model.safetensors" for folder in (trained, tmp_path / "again"))
    assert one.read_bytes()[-1000:] == other.read_bytes()[-1000:]
    one, other = ((folder / RUN_FILE).read_text().replace(str(folder), "") for folder in (trained, tmp_path / "again"))
    assert one == other


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red\nlearning_rate: 0.1\n", "has the unknown settings colour;"),
        ("- config\n", "must map names of settings to values"),
        ("config: [\n", "cannot be read"),
        ("learning_rate: fast\n", "learning_rate must be a number, not 'fast'"),
        ("learning_rate: null\n", "learning_rate must be a number, not None"),
        ("seed: 1.5\n", "seed must be an integer, not 1.5"),
        ("seed: true\n", "seed must be an integer, not True"),
        ("progress: 1\n", "progress must be true or false, not 1"),
        ("config: 5\n", "config must be a text, not 5"),
        ("data_list: data.json\n", "data_list must be a list of texts, or null, not 'data.json'"),
        ("fonts: [1]\n", "fonts must be a list of texts, or null"),
        ("train_batch_size: 0\n", "--train_batch_size must be an integer, at least 1"),
    ],
)
def test_a_wrong_file_is_one_sentence(teacher, tmp_path, capsys, text, words):
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(text)
    flags = ["--use_mock_dataset", "--output_dir", str(run), "--teacher_ckpt", str(teacher / "micro.safetensors")]
    flags += [] if text.startswith("config") else ["--config", str(teacher / "micro.yaml")]
    assert train.main(["--run", str(file), *flags]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out and not run.exists()


def test_what_people_write_by_hand(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 1e-4\nlora_alpha: 8\nfonts: [a.ttf]\nguidance_scale: null\n", encoding="utf-8-sig")
    assert read_run(file) == {"learning_rate": 1e-4, "lora_alpha": 8, "fonts": ("a.ttf",), "guidance_scale": None}
    with pytest.raises(FileNotFoundError, match="nowhere.yaml does not exist"):
        read_run(tmp_path / "nowhere.yaml")
