"""Categories of hostile files with weights: checkpoints, adapters, what a training keeps, latents."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import torch
from attacks import Warm
from campaign import Attempt
from damage import damaged_bytes, damaged_json, odd_file
from micro_network import SIDE, micro_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def odd_tensor(rng: random.Random, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A tensor of another shape, kind or content, and how."""
    kind = rng.choice("shape scalar empty axis int bool half nan inf huge complex".split())
    changed = {
        "shape": lambda: torch.zeros([n + 1 for n in tensor.shape]),
        "scalar": lambda: torch.tensor(1.0),
        "empty": lambda: torch.zeros(0),
        "axis": lambda: tensor[None],
        "int": lambda: tensor.to(torch.int64),
        "bool": lambda: tensor > 0,
        "half": lambda: tensor.half(),
        "nan": lambda: torch.full_like(tensor.float(), float("nan")),
        "inf": lambda: torch.full_like(tensor.float(), float("inf")),
        "huge": lambda: torch.full_like(tensor.float(), 1e38),
        "complex": lambda: tensor.to(torch.complex64),
    }
    return kind, changed[kind]().contiguous()


def damaged_state(rng: random.Random, state: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """A state dict with one to three entries changed, removed, added or renamed, and how."""
    state, hows = dict(state), []
    for _ in range(rng.choice((1, 1, 1, 3))):
        key = rng.choice(sorted(state) or [""])
        kind = rng.choice(("change", "change", "remove", "add", "rename"))
        if kind == "change" and key:
            how, state[key] = odd_tensor(rng, state[key])
            kind = f"{how} {key[-40:]}"
        elif kind == "remove":
            state.pop(key, None)
        elif kind == "add":
            state[rng.choice(("x", "", key + ".x", "lora_te_x", "base_model.model.x.lora_A.weight"))] = torch.ones(2, 2)
        elif key:
            state[key.replace("model", "mode", 1) if "model" in key else "m" + key] = state.pop(key)
        hows.append(kind)
    return ", ".join(hows), state


def fingerprint(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) or bool(value.isnan().any()) for name, value in one.items()
    )


def checkpoints(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """Checkpoints of the network: all of a file is loaded or nothing, and no file runs a program."""
    model, ending = micro_network(3), rng.choice((".safetensors", ".ckpt"))
    path, what = here / f"a{ending}", "whole"
    state = {key: value.contiguous().clone() for key, value in warm.model.state_dict().items()}
    if rng.random() < 0.5:
        what, state = damaged_state(rng, state)
    if ending == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        how, found = odd_pickle(rng, here, state)
        what = f"{what} {how}"
        torch.save(found, path, _use_new_zipfile_serialization=rng.random() < 0.8)
    if what == "whole" or rng.random() < 0.4:
        how, content = damaged_bytes(rng, path.read_bytes())
        what = f"{what}, {how}"
        path.write_bytes(content)
    before = fingerprint(model)
    changed = {name: value.clone() for name, value in before.items()}
    ran = here.parent / f"{here.name}.ran"

    def use() -> None:
        model.load_checkpoint(path)

    def effect() -> bool:
        return not ran.exists() and not same(changed, fingerprint(model))

    return Attempt(f"{ending} {what}", use, effect, lambda: not ran.exists() and same(before, fingerprint(model)))


class Program:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def odd_pickle(rng: random.Random, here: Path, state: dict[str, torch.Tensor]) -> tuple[str, object]:
    """What torch.save gets in the place of a plain state dict, and how it differs."""
    key = rng.choice(sorted(state) or ["x"])
    kind = rng.choice("plain nested program sparse quantised meta list number key view wrapped twice".split())
    odd = {
        "plain": lambda: state,
        "nested": lambda: {"state_dict": {"state_dict": state}},
        "program": lambda: state | {"x": Program(here.parent / f"{here.name}.ran")},
        "sparse": lambda: state | {key: torch.eye(3).to_sparse()},
        "quantised": lambda: state | {key: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
        "meta": lambda: state | {key: torch.empty(3, device="meta")},
        "list": lambda: list(state.values()),
        "number": lambda: state | {key: 1.0},
        "key": lambda: state | {1: torch.ones(1)},
        "view": lambda: state | {key: torch.ones(1).expand(10**9)},
        "wrapped": lambda: {f"module._orig_mod.{name}": value for name, value in state.items()},
        "twice": lambda: state | {f"model_ema.{name}": value for name, value in list(state.items())[:3]},
    }
    return kind, odd[kind]()


# -- adapters ---------------------------------------------------------------------------------------------


def adapters(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """PEFT folders at two scales, kohya and diffusers files."""
    from anytext_lcm.adapter.lora import adapter_layers
    from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters

    kind = rng.choice(("peft", "peft", "peft half", "kohya", "diffusers"))
    if kind.startswith("peft"):
        source = here / "adapter"
        shutil.copytree(warm.folder / "adapter", source)
        weights = source / "adapter_model.safetensors"
    else:
        source = weights = here / "lora.safetensors"
        shutil.copy(warm.folder / f"{kind}.safetensors", source)
    if kind.startswith("peft") and rng.random() < 0.5:
        path = source / "adapter_config.json"
        what, content = damaged_json(rng, json.loads(path.read_text()))
        path.write_bytes(content)
    elif rng.random() < 0.4:
        what, content = damaged_bytes(rng, weights.read_bytes())
        weights.write_bytes(content)
    else:
        with safe_open(weights, "pt") as file:
            header = file.metadata() or {}
        what, state = damaged_state(rng, load_file(weights))
        if kind == "diffusers" and rng.random() < 0.6:
            what, content = damaged_json(rng, json.loads(header["lora_adapter_metadata"]))
            state, header["lora_adapter_metadata"] = load_file(weights), content.decode("utf-8", "replace")
        save_file(state, weights, header)
    if rng.random() < 0.04:
        shutil.rmtree(source) if source.is_dir() else source.unlink()
        what = odd_file(rng, source)
    before = fingerprint(warm.model)
    scale = 0.5 if kind.endswith("half") else 1.0

    def use() -> None:
        load_adapters(warm.model, [WeightedAdapter(source, scale)])

    def effect() -> bool:
        return bool(adapter_layers(warm.model)) and all(
            bool(value.isfinite().all()) for value in warm.model.state_dict().values() if value.is_floating_point()
        )

    return Attempt(f"{kind}: {what}", use, effect, lambda: same(before, fingerprint(warm.model)))


# -- what a training keeps --------------------------------------------------------------------------------


def states(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """A checkpoint of a training: its state, its manifest, its adapter; by name and as the latest."""
    from test_resume import options

    from anytext_lcm.training import checkpoints as kept
    from anytext_lcm.training.loop import new_student
    from anytext_lcm.training.processes import start_accelerator
    from anytext_lcm.training.resume import restore
    from anytext_lcm.training.settings import TrainSettings

    run = here / "run"
    shutil.copytree(warm.folder / "run", run)
    folder = run / "checkpoint-1"
    part = rng.choice(("state", "state", "state", "file", "manifest", "odd"))
    if part == "state":
        path = folder / "training_state.pt"
        what, found = damaged_table(rng, torch.load(path, weights_only=True))
        torch.save(found, path)
    elif part == "file":
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        what, content = damaged_bytes(rng, path.read_bytes())
        path.write_bytes(content)
    elif part == "manifest":
        path = folder / "manifest.json"
        what, content = damaged_json(rng, json.loads(path.read_text()))
        path.write_bytes(content)
    else:
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        path.unlink()
        what = f"{odd_file(rng, path)} {path.name}"
    if part in ("state", "file") and rng.random() < 0.8:  # as if it had been written so
        rewrite_manifest(folder)
    wanted = rng.choice(("latest", str(folder)))
    settings = TrainSettings.from_dict(options(warm.folder, run, resume_from_checkpoint=wanted))
    state = new_student(settings, start_accelerator(settings))
    before = fingerprint(state.model)

    def use() -> None:
        found = kept.find_resume(settings)
        if found is not None:
            restore(found, state, settings)

    def intact() -> bool:
        return same(before, fingerprint(state.model)) and not state.optimizer.state_dict()["state"]

    def effect() -> bool:
        return state.progress.step > 0 or not kept.checkpoints(run) or wanted == "latest"

    return Attempt(f"{part} {wanted[-12:]}: {what}", use, effect, intact)


def rewrite_manifest(folder: Path) -> None:
    """Write the sizes and digests of the files as they are now."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def damaged_table(rng: random.Random, table: dict) -> tuple[str, object]:
    """A table of tables with one entry replaced, removed or added, and how."""
    inside, path = table, []
    while True:
        key = rng.choice(list(inside))
        path.append(str(key))
        if not isinstance(inside[key], dict) or not inside[key] or rng.random() < 0.3:
            break
        inside = inside[key]
    odd = (None, True, -1, 2**70, 1e400, float("nan"), "x", b"x", [], {}, [1], {"x": 1}, torch.ones(2), torch.tensor(1))
    kind, new = rng.choice(("replace", "replace", "remove", "add")), rng.choice(odd)
    if kind == "replace":
        inside[key] = new
    elif kind == "remove":
        del inside[key]
    else:
        inside[rng.choice(("x", 99, -1, True))] = new
    return f"{kind} {'.'.join(path)} {ascii(new)[:30]}", rng.choice((table,) * 9 + ([table],))


def damage(rng: random.Random, path: Path, odd: float) -> str:
    """Damage a file of a folder in place, a share `odd` by something else in its place, and say what was done."""
    if rng.random() < odd:
        path.unlink()
        return odd_file(rng, path)
    if path.suffix == ".json":
        what, content = damaged_json(rng, json.loads(path.read_text()))
    else:
        what, content = damaged_bytes(rng, path.read_bytes())
    path.write_bytes(content)
    return what


def latents(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """A folder of latents, any of its files damaged, and its JSONs entry by entry."""
    from anytext_lcm.data.mock import MockDataset
    from anytext_lcm.data.packed import PackedDataset
    from anytext_lcm.training.latents import with_latents

    folder = here / "latents"
    shutil.copytree(warm.folder / "latents", folder)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    what = damage(rng, path, 0.15)
    dataset = PackedDataset(MockDataset(3, image_size=SIDE, edit_share=0.0))

    def use() -> None:
        found = with_latents(dataset, folder, warm.model)
        for place in range(3):
            assert found[place]["latent_moments"].ndim == 3

    return Attempt(f"{path.name}: {what}", use)


def path_stores(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """A store of the teacher's paths, any of its files damaged, and its JSONs entry by entry."""
    from anytext_lcm.training.path_store import PathDataset

    kind = rng.choice(("rules", "captions"))
    folder = here / "paths"
    shutil.copytree(warm.folder / kind, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice([*files, *[file for file in files if file.suffix == ".json"] * 3])
    what = damage(rng, path, 0.1)
    settings = path_settings(
        warm.folder, folder, validation_share=rng.choice((0.0, 0.3)) if kind == "captions" else 0.0
    )

    def use() -> None:
        found = PathDataset(settings)
        found.check(settings, warm.model)
        for place in range(len(found)):
            assert found[place]["path"].shape[0] == 51

    return Attempt(f"{kind}, {path.name}: {what}", use)


def path_settings(network: Path, folder: Path, **changed: object) -> object:
    """The settings of a training on the paths in `folder`."""
    from anytext_lcm.training.settings import TrainSettings

    config, weights = (str(network / name) for name in ("micro.yaml", "micro.safetensors"))
    own = {"config": config, "teacher_ckpt": weights, "output_dir": str(folder.parent / "out"), "paths": str(folder)}
    return TrainSettings.from_dict(own | {"guidance_scale": 1.0, "train_batch_size": 3, "panel_prompts": 0} | changed)
