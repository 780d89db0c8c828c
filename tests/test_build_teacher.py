"""The embedded teacher's recipe: its optimiser, its training loop, its linear latents, all in miniature."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import EMBEDDED

from anytext_lcm import build_teacher
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import ASSETS, EMBEDDED_CHECKPOINT
from anytext_lcm.teacher import columns, features, fitting, muon, stages
from anytext_lcm.teacher.autoencoder import fit_patches, train_autoencoder
from anytext_lcm.teacher.batches import Batches
from anytext_lcm.teacher.diffusion import train_diffusion
from anytext_lcm.teacher.fitting import Plan, TrainingState, fit, moving_average
from anytext_lcm.teacher.muon import Muon, orthogonal
from anytext_lcm.teacher.processes import Rank, launch, parallel
from anytext_lcm.teacher.readers import train_reader, train_recogniser
from anytext_lcm.teacher.recipe import Recipe
from anytext_lcm.teacher.writing import Trajectories, WritingLoss, train_writing

ALONE = Rank(0, 1, torch.device("cpu"))
TINY_RECIPE = Recipe(
    pictures=24,
    vae_steps=2,
    vae_batch=6,
    recogniser_steps=2,
    recogniser_batch=2,
    diffusion_steps=4,
    diffusion_batch=2,
    noise_levels_per_picture=2,
    reader_steps=4,
    reader_batch=2,
    writing_steps=2,
    writing_batch=3,
    writing_pool=12,
    writing_ahead=4,
    writing_true=(1, 2),
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pictures", "300"], "was begun with --pictures 24, not 300"),
        (["--seed", "5"], "was begun with --seed 3, not 5"),
        (["--start_from", __file__], "was begun with --start_from None"),
        (["--stage", "export"], "holds neither writing.pt nor diffusion.pt"),
        (["--stage", "vae"], "captions.json, which is not there; run data first"),
    ],
)
def test_what_a_work_folder_was_begun_with_stays(words, said, tmp_path, capsys):
    """It would be ignored silently where the stage is done already."""
    begun = {"pictures": 24, "seed": 3, "start_from": None}
    assert stages.claim(tmp_path, **begun) == begun
    assert stages.claim(tmp_path, pictures=None, seed=3, start_from=None) == begun
    command = ["--work", str(tmp_path), *(["--stage", "data"] if "--stage" not in words else []), *words]
    assert build_teacher.main(command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and said in printed and printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["begun_with.json"]


def test_a_stage_says_which_one_has_to_run_first(tmp_path, capsys):
    steps = ("captions.json", "data"), ("vae.pt", "vae"), ("recogniser.pt", "recogniser"), ("features.done", "features")
    for stage, further in (("diffusion", ()), ("writing", (("diffusion.pt", "diffusion"), ("reader.pt", "reader")))):
        work = tmp_path / stage
        for name, maker in steps + further:
            assert build_teacher.main(["--work", str(work), "--stage", stage]) == 2
            said = capsys.readouterr().err
            assert said == f"error: --stage {stage} reads {work / name}, which is not there; run {maker} first.\n"
            (work / name).touch()


def test_the_tokenizer_stage_writes_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ASSETS", tmp_path)
    stages.run_stage("tokenizer", tmp_path, TINY_RECIPE, 1, tmp_path / "unused")
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (ASSETS / "tokenizer" / name).read_bytes()


def test_processes_are_as_many_as_there_are_cores_to_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("anytext_lcm.drawing.cores.available_cores", lambda: 3)
    assert build_teacher.usual_processes() == 3


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    result = orthogonal(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    in_its_axes = u.mT @ result @ v.mT
    values = in_its_axes.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(in_its_axes, torch.diag_embed(values), atol=1e-4, rtol=0)
    half = orthogonal(matrix.bfloat16()).float()  # what a step takes where that is fast
    assert 0 < (half - result).norm() < 0.05 * result.norm()


def test_muon_moves_a_matrix_as_torch_does(monkeypatch):
    """torch.optim.Muon works in bfloat16, hence the tolerance: 2 % of the largest move."""
    monkeypatch.setattr(muon, "fast_bfloat16", lambda rank: False)
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(16, 48)) for _ in range(2))
    optimisers = (
        Muon([ours], lr=0.1, rank=ALONE, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon(
            [theirs], lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(3):
        gradient = torch.randn(16, 48)
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    assert (ours - 1).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=0.02 * (theirs - 1).abs().max().item(), rtol=0)


def test_muon_takes_a_convolution_as_a_matrix():
    torch.manual_seed(0)
    kernel, matrix = torch.nn.Parameter(torch.zeros(8, 4, 3, 3)), torch.nn.Parameter(torch.zeros(8, 36))
    matrix.grad = torch.randn(8, 36)
    kernel.grad = matrix.grad.view(8, 4, 3, 3).to(memory_format=torch.channels_last)
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.1, rank=ALONE).step()
    torch.testing.assert_close(kernel.flatten(1), matrix, atol=1e-6, rtol=0)


# -- the training loop ------------------------------------------------------------------------------------------------

PLAN = Plan("line", steps=60, peak=0.05, decay=0.5, warmup=10, clip=0.5)


def line_state(path=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    average = None if path is None else moving_average(model, 0.9)
    return TrainingState(model, [torch.optim.AdamW(model.parameters())], average, path)


def line_loss(model, rank, count=4):
    """loss_of(step) for `fit`: the sum of three numbers; the batch depends on the step and the process alone."""

    def loss_of(step):
        x = torch.from_numpy(rank.rng(step).standard_normal((count, 3), dtype=np.float32))
        return (model(x)[:, 0] - x.sum(1)).square().mean(), {"twice": 2.0 * step, "pair": torch.tensor([step, 1.0])}

    return loss_of


def line_weights(path):
    return torch.load(path, weights_only=True)["raw"]["weight"]


def test_a_rate_rises_stays_and_falls():
    plan = Plan("", steps=1000, peak=2.0, decay=0.4, warmup=100)
    rates = [plan.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02) and rates[49] == pytest.approx(1.0)
    assert set(rates[99:601]) == {2.0} and rates[800] == pytest.approx(1.0) and rates[999] == pytest.approx(0.005)


def test_fit_is_the_loop_written_out(tmp_path):
    state = line_state(tmp_path / "line.pt")
    fit(ALONE, state, PLAN, line_loss(state.module, ALONE))
    model, average = line_state().module, None
    optimiser, losses = torch.optim.AdamW(model.parameters()), []
    for step in range(PLAN.steps):
        optimiser.param_groups[0]["lr"] = 0.05 * min((step + 1) / 10, 1, (60 - step) / 30)
        loss, _ = line_loss(model, ALONE)(step)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        weight = model.weight.detach()
        kept = min(0.9, (1 + step) / (10 + step))
        average = weight.clone() if average is None else kept * average + (1 - kept) * weight
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert torch.equal(state.module.weight, model.weight)
    torch.testing.assert_close(state.average.module.weight, average)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert list(saved) == ["raw", "average", "optimisers", "step"] and saved["step"] == 60
    assert torch.equal(fitting.averaged(tmp_path / "line.pt")["weight"], state.average.module.weight)
    [row] = map(json.loads, (tmp_path / "line.jsonl").read_text().splitlines())
    assert row.pop("seconds") >= 0
    assert row.pop("loss") == pytest.approx(np.mean(losses[:50]), abs=1e-5)
    assert row == {"step": 50, "twice": 49.0, "pair": [24.5, 1.0]}


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0)

    class Interruption(Exception):
        pass

    def interrupted(step):
        if step == 33:
            raise Interruption
        return line_loss(state.module, ALONE)(step)

    state = line_state(tmp_path / "line.pt")
    with pytest.raises(Interruption):
        fit(ALONE, state, PLAN, interrupted)
    again = line_state(tmp_path / "line.pt")
    assert again.restore() == 33
    fit(ALONE, again, PLAN, line_loss(again.module, ALONE))
    whole = line_state(tmp_path / "whole.pt")
    fit(ALONE, whole, PLAN, line_loss(whole.module, ALONE))
    for name in ("raw", "average"):
        one, other = (torch.load(tmp_path / f"{file}.pt", weights_only=True)[name] for file in ("line", "whole"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name


def line_stage(rank, work, recipe):
    """A stage for `launch`; a function of this module, since the processes import it."""
    state = line_state(work / "line.pt")
    state.optimisers = [Muon([state.module.weight], lr=0.1, rank=rank), *state.optimisers]
    model = parallel(state.module, rank)
    fit(rank, state, replace(PLAN, steps=5), line_loss(model, rank))


def test_two_processes_average_their_gradients(tmp_path):
    """As one process whose batch is that of both."""
    launch(line_stage, tmp_path, TINY_RECIPE, 2)
    state, ranks = line_state(tmp_path / "one.pt"), [Rank(i, 2, ALONE.device) for i in (0, 1)]
    state.optimisers = [Muon([state.module.weight], lr=0.1, rank=ALONE), *state.optimisers]
    both = [line_loss(state.module, rank) for rank in ranks]
    fit(ALONE, state, replace(PLAN, steps=5), lambda step: (sum(loss(step)[0] for loss in both) / 2, {}))
    torch.testing.assert_close(line_weights(tmp_path / "line.pt"), line_weights(tmp_path / "one.pt"))


# -- the stages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The data stage of a miniature run."""
    folder = tmp_path_factory.mktemp("teacher")
    columns.create_columns(folder, TINY_RECIPE.pictures)
    columns.draw(ALONE, folder, TINY_RECIPE)
    columns.finish_data(folder, 1)
    return folder


def compute_features(work):
    features.prepare_features(work, TINY_RECIPE)
    features.encode_all(ALONE, work, TINY_RECIPE)
    features.finish_features(work)


@torch.no_grad()
def test_the_linear_latents_are_principal_components(work):
    found = columns.open_columns(work)
    vae = AnyText2.from_config(EMBEDDED).first_stage_model
    fit_patches(found, vae, noise=0.05, text_weight=1.0)
    images = torch.from_numpy(np.array(found["img"])).float() / 127.5 - 1
    mean, logvar = vae.encode(images)
    assert mean.square().mean().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(logvar.exp().sqrt(), torch.full_like(logvar, 0.05), rtol=1e-4, atol=0)

    squares = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2).reshape(-1, 192).double()
    centred = squares - squares.mean(0)
    lost = torch.linalg.svdvals(centred)[16:].square().sum() / len(squares) / 192  # Eckart & Young 1936
    error = (vae.decode(mean) - images).square().mean()
    means = squares.mean(0).view(3, 64)
    unkept = (means - means.mean(1, keepdim=True)).square().mean()  # the decoder's bias is one value a channel
    assert error.item() == pytest.approx(lost.item(), abs=unkept.item() + 1e-4)
    correlation = torch.corrcoef(mean.transpose(0, 1).flatten(1))
    torch.testing.assert_close(correlation, torch.eye(16), atol=1e-3, rtol=0)


def test_a_stage_trains_only_what_it_should(work):
    train_autoencoder(ALONE, work, TINY_RECIPE)
    saved = torch.load(work / "vae.pt", weights_only=True)
    fresh = AnyText2.from_config(EMBEDDED).first_stage_model
    fit_patches(columns.open_columns(work), fresh, TINY_RECIPE.posterior_noise, TINY_RECIPE.text_weight)
    linear = fresh.state_dict()
    changed = {name for name, value in saved["raw"].items() if not torch.equal(value, linear[name])}
    assert {"decoder.linear.weight", "decoder.correction.conv_out.weight"} <= changed
    assert not any(name.startswith(("encoder.", "quant_conv.")) for name in changed)


@pytest.mark.full
def test_all_stages_in_miniature_make_a_teacher_that_loads(work, tmp_path):
    train_autoencoder(ALONE, work, TINY_RECIPE)
    train_recogniser(ALONE, work, TINY_RECIPE)
    compute_features(work)
    train_diffusion(ALONE, work, replace(TINY_RECIPE, diffusion_steps=2))
    first = torch.load(work / "diffusion.pt", weights_only=True)
    assert first["step"] == 2
    train_diffusion(ALONE, work, TINY_RECIPE)  # goes on where the other ended
    second = torch.load(work / "diffusion.pt", weights_only=True)
    assert second["step"] == 4
    moved = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    assert not torch.equal(first["raw"][moved], second["raw"][moved])

    train_reader(ALONE, work, TINY_RECIPE)
    train_writing(ALONE, work, TINY_RECIPE)
    written = torch.load(work / "writing.pt", weights_only=True)
    assert written["step"] == 2 and not torch.equal(written["raw"][moved], second["raw"][moved])
    for name, value in second["raw"].items():  # the frozen parts are left alone
        if name.startswith(("first_stage_model.", "text_predictor.")):
            assert torch.equal(value, written["raw"][name]), name

    stages.stage_export(work, tmp_path / "teacher.safetensors")
    model = AnyText2.from_config(EMBEDDED).load_checkpoint(tmp_path / "teacher.safetensors")
    averaged = written["average"]["module." + moved]
    torch.testing.assert_close(
        model.model.diffusion_model.input_blocks[1][0].in_layers[2].weight, averaged, atol=1e-3, rtol=1e-3
    )


def test_trajectories_step_down_and_begin_again():
    """That DDIM with the network's own velocity takes a picture down by its own stride, and that it ends."""
    model = AnyText2.from_config(EMBEDDED).eval()
    paths = Trajectories.__new__(Trajectories)
    paths.recipe, paths.rng, paths.model = TINY_RECIPE, np.random.default_rng(0), model
    paths.schedule = NoiseSchedule(model.alphas_cumprod)
    paths.x = torch.randn(10, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    paths.rows, paths.t = np.arange(10), 992 - 100 * np.arange(10)
    paths.stride = np.array([100, 50] * 5)
    clean = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(1))

    def predict(x, t):  # of a network that always expects the same clean latents
        x0 = clean.expand_as(x)
        return paths.schedule.v_from_x0_eps(x0, paths.schedule.eps_from_x0(x, x0, t), t)

    paths.predictor, paths.batch = lambda batch: predict, lambda places, empty=False: {}
    before = paths.x.clone()
    paths.t[8] = 42  # less than its stride is left
    places = np.array([3, 4, 8])
    paths.advance(places)
    assert paths.t.tolist()[:8] == [992, 892, 792, 642, 492, 492, 392, 292] and paths.t[8] > 940
    assert torch.equal(paths.x[[0, 1, 2, 5]], before[[0, 1, 2, 5]])
    alpha, sigma = paths.schedule.alpha_sigma(torch.tensor([642]), clean[None])
    start = paths.schedule.alpha_sigma(torch.tensor([692]), clean[None])
    eps = (before[3] - start[0] * clean) / start[1]
    torch.testing.assert_close(paths.x[3], (alpha * clean + sigma * eps)[0], atol=1e-4, rtol=1e-4)
    assert (paths.x[8] - clean).abs().mean() > 0.5  # noise for the next prompt


def test_a_pool_of_trajectories_begins_at_all_levels(work):
    stages.start_from(EMBEDDED_CHECKPOINT, work, TINY_RECIPE)
    compute_features(work)
    model = features.scaled_parts(work, torch.device("cpu"))
    batches = Batches(work, TINY_RECIPE, torch.device("cpu"), model.scale_factor)
    paths = Trajectories(model, batches, TINY_RECIPE, np.random.default_rng(0))
    assert set(paths.stride) == set(TINY_RECIPE.writing_strides)
    assert paths.t.max() > 900 and paths.t.min() < 200 and len(set(paths.t // 100)) > 6


def test_the_writing_loss_counts_the_next_estimate_too():
    """Against the same written out: two readings, the second a DDIM step later, each over the sigma of its level."""
    schedule = NoiseSchedule(AnyText2.from_config(EMBEDDED, device="cpu").alphas_cumprod)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t, jump, weight = torch.tensor([900, 150]), 200, 0.3
    recipe = Recipe(writing_weight=weight, writing_max_weight=4.0, writing_jump=(jump, jump))
    gain = torch.tensor(0.7, requires_grad=True)

    class Paths:
        def __init__(self):
            self.schedule, self.x = schedule, x

        predictor = staticmethod(lambda batch: lambda x, t: gain * x)
        timesteps = staticmethod(lambda places: t)
        step = Trajectories.step

    def reading(latents, transforms, place, texts, generator):
        return latents.square().mean((1, 2, 3))[place]

    lines = (None, torch.tensor([0, 1, 1]), None)
    loss_of = WritingLoss(lambda: (torch.zeros(()), None), reading, recipe)
    loss, _, readings, v = loss_of((), Paths(), {}, np.arange(2), lines, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, gain)

    other = torch.tensor(0.7, requires_grad=True)
    abar = schedule.alphas_cumprod
    expected, read = 0, torch.zeros(2)
    for row, count in ((0, 1), (1, 2)):
        now, later = t[row], (t[row] - jump).clamp(min=0)
        (a, b), (c, d) = ((abar[i].sqrt(), (1 - abar[i]).sqrt()) for i in (now, later))
        first = a * x[row] - b * other * x[row]
        state = c * first + d * (b * x[row] + a * other * x[row])
        second = c * state - d * other * state
        read += count / 3 * torch.stack([first, second]).detach().square().mean((1, 2, 3))
        for estimate, sigma in ((first, b), (second, d)):
            expected = expected + count / 3 * min(1 / sigma, 4) * weight * estimate.square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, other)[0])
    torch.testing.assert_close(v, 0.7 * x)
    torch.testing.assert_close(readings, read)
