"""What a run says while it trains: curves, the panel, the bar; and what it does about numbers that are not finite."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import NoisyPictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import options
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from anytext_lcm.adapter.stored import read_adapter
from anytext_lcm.drawing.draw import to_uint8
from anytext_lcm.training.logs import read_curves, read_pictures
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.state_file import Progress
from anytext_lcm.training.watching import Watcher, problem_counts, report_problems, sample_pictures


def scalars(output):
    log = EventAccumulator(str(output / "logs" / "distill"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


class Broken(NoisyPictures):
    """Pictures of which some are not numbers."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"img": np.full_like(item["img"], np.nan)} if index in self.broken else item


def test_an_update_that_is_not_finite_is_skipped_and_counted(teacher, tmp_path):
    """Five updates of one picture each are one epoch: one of them has the broken one."""
    settings = options(
        teacher,
        tmp_path,
        max_train_steps=5,
        gradient_accumulation_steps=1,
        checkpointing_steps=1,
        checkpoints_total_limit=0,
        ema_decay=0.0,
    )
    run_distillation(settings, None, Broken({2}))
    found = scalars(tmp_path)
    skipped = [value for _, value in found["skipped_updates"]]
    assert skipped == sorted(skipped) and skipped[-1] == 1
    losses = [value for _, value in found["loss"]]
    [bad] = [i for i, value in enumerate(losses) if not math.isfinite(value)]
    weights = [read_adapter(tmp_path / f"checkpoint-{step}")[1] for step in range(1, 6)]
    assert all(bool(w.isfinite().all()) for step in weights for w in step.values())
    if bad:  # the weights stay as they were
        assert all(torch.equal(weights[bad][key], weights[bad - 1][key]) for key in weights[0])
    state = torch.load(tmp_path / "checkpoint-5" / "training_state.pt", weights_only=True)
    assert state["progress"]["skipped"] == 1 and state["progress"]["step"] == 5


def test_too_many_of_them_in_a_row_end_the_run(teacher, tmp_path):
    settings = options(teacher, tmp_path, max_skipped=3)
    words = r"Updates 1 to 3 were skipped.*loss was nan.*at timesteps \d+-\d+.*at loss scale 1\."
    with pytest.raises(FloatingPointError, match=words):
        run_distillation(settings, None, Broken(set(range(5))))
    kept = read_adapter(tmp_path / "checkpoint-2")[1]
    assert all(bool(value.isfinite().all()) for value in kept.values())


def test_curves_panel_and_bar(teacher, tmp_path, capfd):
    settings = options(
        teacher,
        tmp_path,
        use_mock_dataset=True,  # whence the panel's prompts; the pictures are those of the call
        sample_steps=2,
        panel_prompts=2,
        num_inference_steps=1,
        progress=True,
        max_train_steps=4,
        train_batch_size=2,
    )
    last = run_distillation(settings, None, NoisyPictures())
    found = scalars(tmp_path)
    for tag in ("loss", "lr", "grad_norm", "adapter_norm", "x0_gap", "samples_per_second", "skipped_updates"):
        assert [step for step, _ in found[tag]] == [1, 2, 3, 4], tag
    buckets = [tag for tag in found if tag.startswith("x0_gap_by_timestep/")]
    assert 2 <= len(buckets) <= 5 and all(value > 0 for tag in buckets for _, value in found[tag])
    for tag in ("panel/accuracy", "panel/ned"):
        assert [step for step, _ in found[tag]] == [0, 2, 4] and all(0 <= value <= 1 for _, value in found[tag])
        assert [step for step, _ in found[f"ema/{tag}"]] == [2, 4]
    assert [step for step, _ in found["panel/since_best"]] == [2, 4]
    assert found["adapter_norm"][-1][1] == pytest.approx(adapter_norm_of(last), rel=1e-5)
    said = capfd.readouterr().err
    assert "loss=" in said and "samples/s=" in said and "<" in said and said.count("distil:   0%") <= 1


def test_a_small_loss_is_not_shown_as_zero(capfd):
    """Phased consistency's is of the order of 1e-5."""
    watcher = Watcher.__new__(Watcher)
    watcher.problems, watcher.bar = Counter(), tqdm(total=2, desc="distil")
    watcher.state = SimpleNamespace(accelerator=SimpleNamespace(log=lambda *_, **__: None), progress=Progress())
    watcher.log_update({"loss": 3.124e-5, "samples_per_second": 8.0}, [])
    watcher.bar.close()
    assert "loss=3.12e-5, samples/s=8.00" in capfd.readouterr().err


def test_in_half_precision_the_average_draws_pictures_of_its_own(teacher, tmp_path):
    """Autocast keeps half-precision copies of weights; those of the student must not draw for the average."""
    looks = []

    def look(model, batch, settings, step):
        pictures = sample_pictures(model, batch, settings, step)["student-4"] if step else None
        looks.append((step, pictures))
        return {}

    settings = options(
        teacher,
        tmp_path,
        mixed_precision="bf16",
        ema_decay=0.5,
        learning_rate=0.1,
        sample_steps=2,
        panel_prompts=0,
        max_train_steps=2,
    )
    run_distillation(settings, look, NoisyPictures())
    assert [step for step, _ in looks] == [0, 2, 2]
    assert not np.array_equal(looks[1][1], looks[2][1])


def test_sample_pictures_are_read_back_side_by_side(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 6, 3)).astype(np.uint8)
    writer = SummaryWriter(tmp_path / "logs" / "distill")
    for step in (4, 2):
        writer.add_images("samples/student-4", pictures + np.uint8(step), step, dataformats="NHWC")
    writer.close()
    found = read_pictures(tmp_path, "samples/student-4")
    assert list(found) == [2, 4]
    assert np.array_equal(found[4], np.concatenate(list(pictures + np.uint8(4)), axis=1))  # PNG loses nothing
    assert read_pictures(tmp_path, "samples/teacher-20") == read_pictures(tmp_path / "nowhere", "loss") == {}


def test_pictures_that_are_not_numbers_do_not_end_the_run(teacher, tmp_path, capsys):
    def look(model, batch, settings, step):
        return {"student": to_uint8(torch.full((1, 3, 8, 8), math.nan if step >= 2 else 0.0))}

    settings = options(teacher, tmp_path, sample_steps=2, panel_prompts=0, ema_decay=0.0, max_train_steps=3)
    last = run_distillation(settings, look, NoisyPictures())
    assert last.name == "checkpoint-3" and (tmp_path / "checkpoint-2").is_dir()
    said = capsys.readouterr().out
    assert "No sample pictures at step 2: The pictures hold numbers that are not finite" in said


def test_what_a_killed_launch_logged_last_is_forgotten(tmp_path):
    """Of 10 updates the last checkpoint held 5, and the resumed launch has come to 7."""
    folder = tmp_path / "logs" / "distill"
    with SummaryWriter(folder, filename_suffix=".0") as writer:
        for step in range(1, 11):
            writer.add_scalar("loss", 1.0, step)
    with SummaryWriter(folder, purge_step=6, filename_suffix=".1") as writer:
        for step in (6, 7):
            writer.add_scalar("loss", 2.0, step)
    with SummaryWriter(tmp_path / "logs" / "other") as writer:
        writer.add_scalar("speed", 3.0, 9)
    found = read_curves(tmp_path)
    assert found == {"loss": ([1, 2, 3, 4, 5, 6, 7], [1.0] * 5 + [2.0] * 2), "speed": ([9], [3.0])}
    assert read_curves(tmp_path / "nowhere") == {}


def adapter_norm_of(checkpoint):
    return math.sqrt(sum(float(w.double().square().sum()) for w in read_adapter(checkpoint)[1].values()))


def test_the_first_problems_of_each_kind_are_printed_and_all_are_counted(capsys):
    gone = [f"data.json, record {i}, picture: {i}.png is gone" for i in range(5)]
    counts = Counter()
    report_problems(gone[:2], counts)
    report_problems([*gone[2:], "data.json, record 9, text: it is empty"], counts)
    assert capsys.readouterr().out.splitlines() == [*gone[:3], "data.json, record 9, text: it is empty"]
    assert problem_counts(counts) == "picture 5, text 1"


def test_progress_takes_a_tie_for_no_progress():
    progress = Progress()
    for progress.step, score in ((2, 0.1), (4, 0.3), (6, 0.3), (8, 0.2)):
        progress.note_score(score)
    assert (progress.best_score, progress.best_step, progress.panels_since_best) == (0.3, 4, 2)


def test_names_in_problems_reach_the_terminal_escaped(capsys):
    report_problems(["a.json, record 3, picture: no\x1b[2J\nfile"], Counter())
    assert capsys.readouterr().out == "a.json, record 3, picture: no\\x1b[2J\\nfile\n"
