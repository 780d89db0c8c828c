"""Categories of hostile inputs and the ways they come in. Each function draws one case; see `campaign.py`."""

import io
import json
import random
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from campaign import Attempt
from damage import damaged_bytes, damaged_json, odd_file
from micro_network import SIDE, micro_network
from PIL import Image

from anytext_lcm import benchmark, sample
from anytext_lcm.data import __main__ as data_command
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.model import loading
from anytext_lcm.model.anytext2 import AnyText2

LINE = {"polygon": [[8, 16], [56, 16], [56, 40], [8, 40]], "text": "Word", "language": "Latin", "valid": True}
RECORD = {"img_name": "0.png", "caption": "a wall", "wm_score": 0.1, "annotations": [LINE | {"color": [200, 30, 30]}]}


@dataclass(frozen=True)
class Warm:
    """What the parent has loaded: the micro network, and a folder with its files, an adapter and a checkpoint."""

    model: AnyText2
    folder: Path


def draws(warm: Warm, *flags: str) -> int:
    """`sample` with the micro network, which is not loaded again, in one step."""
    loading.load_model = lambda *_, **__: warm.model
    network = ["--config", f"{warm.folder}/micro.yaml", "--ckpt", f"{warm.folder}/micro.safetensors", "--steps", "1"]
    return sample.main([*network, *flags])


def preview(*flags: str) -> int:
    return data_command.main(["preview", "--image_size", "64", "--output", "sheet.png", *flags])


def data_list(folder: Path, *records: dict) -> str:
    (folder / "data.json").write_text(json.dumps({"data_root": ".", "data_list": records}), encoding="utf-8")
    return str(folder / "data.json")


# -- pictures ---------------------------------------------------------------------------------------------


def picture_bytes(rng: random.Random) -> tuple[str, bytes]:
    """A picture of any kind, whole."""
    mode = rng.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK"))
    kinds = {"RGB": "PNG JPEG WEBP BMP GIF TIFF", "CMYK": "JPEG TIFF", "F": "TIFF", "I": "TIFF PNG"}
    kind = rng.choice(kinds.get(mode, "PNG TIFF").split())
    width, height = rng.choice(((SIDE, SIDE), (SIDE, SIDE), (1, 1), (1, 3000), (3000, 1), (100, 80), (700, 500)))
    levels = np.frombuffer(rng.randbytes(height * width), np.uint8).reshape(height, width)
    picture = Image.fromarray(levels)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.int32) * 200)
    elif mode == "F":
        picture = Image.fromarray(levels.astype(np.float32) * rng.choice((1.0, 1 / 255, 1e30, -1.0)))
    elif mode != "L":
        picture = picture.convert(mode)
    options = {}
    if rng.random() < 0.3 and kind != "TIFF":  # whose writer reads it
        options["exif"] = rng.choice((b"Exif\0\0" + rng.randbytes(60), bytes(30), Image.Exif().tobytes()))
    if rng.random() < 0.2:
        options["icc_profile"] = rng.randbytes(200)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"{mode} {kind} {width}x{height}", file.getvalue()


def huge_png(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """The head of a PNG of any size, and no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, b"IDATx\x9c\x03\x00\x00\x00\x00\x01", b"IEND"):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data


def hostile_picture(rng: random.Random, path: Path) -> str:
    """Write a picture that is damaged, odd or of an odd kind. Returns what."""
    draw = rng.random()
    if draw < 0.15:
        return odd_file(rng, path)
    if draw < 0.25:
        size = rng.choice(((2**31 - 1, 1), (1, 2**31 - 1), (65_000, 65_000), (8000, 8000), (0, 0), (64, 2**30)))
        path.write_bytes(huge_png(*size, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 6))))
        return f"PNG of {size}"
    what, content = picture_bytes(rng)
    if draw < 0.85:
        how, content = damaged_bytes(rng, content)
        what = f"{what}, {how}"
    path.write_bytes(content)
    return what


def pictures(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """As the picture to edit, as a mask, in a data set."""
    name = rng.choice(("0.png", "0.jpg", "0", "0.eps", "0.TIFF"))
    what, way = hostile_picture(rng, here / name), rng.choice(("image", "image", "mask", "records"))
    what = f"{name} as {way}: {what}"
    if way == "records":
        Image.new("RGB", (SIDE, SIDE)).save(here / "whole.png")
        path = data_list(here, RECORD | {"img_name": name}, RECORD | {"img_name": "whole.png"})
        return Attempt(
            what, lambda: preview("--data_list", path, "--check_pictures"), lambda: (here / "sheet.png").is_file()
        )
    line = "CAT@8,16,56,40" if way == "image" else "CAT"
    flags = ["--adapter", "none", "--prompt", "a wall", "--line", line, f"--{way}", name, "--output", "out.png"]
    flags += ["--fit"] if rng.random() < 0.7 else []
    return Attempt(what, lambda: draws(warm, *flags), lambda: (here / "out.png").is_file())


# -- JSONs ------------------------------------------------------------------------------------------------


def lists(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """Data lists, for a look at them, and for the benchmark, which stops before the network."""
    Image.new("RGB", (SIDE, SIDE)).save(here / "0.png")
    records = [RECORD | {"img_name": name} for name in ("0.png", "./0.png", "1/../0.png")]
    what, content = damaged_json(rng, {"data_root": ".", "data_list": records})
    (here / "data.json").write_bytes(content)
    if rng.random() < 0.05:
        (here / "data.json").unlink()
        what = odd_file(rng, here / "data.json")
    if rng.random() < 0.7:
        flags = ["--data_list", str(here / "data.json"), *rng.choice(([], ["--strict"], ["--check_pictures"]))]
        return Attempt(f"preview {what}", lambda: preview(*flags), lambda: (here / "sheet.png").is_file())

    def reached(*_, **__):
        raise ValueError("the network was reached")

    def use() -> int:
        loading.load_model = reached
        network = ["--config", f"{warm.folder}/micro.yaml", "--ckpt", f"{warm.folder}/micro.safetensors"]
        return benchmark.main([*network, "--adapter", f"{warm.folder}/adapter", "--data", "data.json"])

    return Attempt(f"benchmark {what}", use)


def batches(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """Batches of prompts."""
    whole = [
        {"prompt": f"wall {i}", "lines": ["CAT@4,10,60,40#red", "b@4,42,60,60"][: i + 1], "seed": i} for i in (0, 1)
    ]
    what, content = damaged_json(rng, whole)
    (here / "batch.json").write_bytes(content)
    if rng.random() < 0.05:
        (here / "batch.json").unlink()
        what = odd_file(rng, here / "batch.json")
    flags = ["--adapter", "none", "--batch", "batch.json", "--output", "out.png"]

    def effect() -> bool:
        entries = json.loads(content.decode("utf-8-sig", "surrogatepass"))
        return len(list(here.glob("out_*.png"))) == len(entries)

    return Attempt(what, lambda: draws(warm, *flags), effect)


# -- fonts ------------------------------------------------------------------------------------------------


def fonts(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """Fonts of glyphs, of hints and of data sets, in which a table or anything else is damaged."""
    content = font_path(rng.choice((PLAIN_FONT, "cmb10.ttf", "STIXGeneral.ttf"))).read_bytes()
    if rng.random() < 0.1:
        what = odd_file(rng, here / "a.ttf")
    else:
        what, content = damaged_bytes(rng, content)
        (here / "a.ttf").write_bytes(content)
    way = rng.choice(("font", "font_hint", "records"))
    what = f"{way} {what}"
    if way == "records":
        Image.new("RGB", (SIDE, SIDE)).save(here / "0.png")
        path = data_list(here, RECORD)
        return Attempt(
            what, lambda: preview("--data_list", path, "--fonts", "a.ttf"), lambda: (here / "sheet.png").is_file()
        )
    flags = ["--adapter", "none", "--prompt", "a wall", "--line", "Word 1@4,10,60,40", f"--{way}", "a.ttf"]
    return Attempt(what, lambda: draws(warm, *flags, "--output", "out.png"), lambda: (here / "out.png").is_file())


# -- weights ----------------------------------------------------------------------------------------------


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
    from safetensors.torch import save_file

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
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

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
    import hashlib

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


def latents(rng: random.Random, here: Path, warm: Warm) -> Attempt:
    """A folder of latents, any of its files damaged, and its JSONs entry by entry."""
    from anytext_lcm.data.mock import MockDataset
    from anytext_lcm.data.packed import PackedDataset
    from anytext_lcm.training.latents import with_latents

    folder = here / "latents"
    shutil.copytree(warm.folder / "latents", folder)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if rng.random() < 0.15:
        path.unlink()
        what = odd_file(rng, path)
    elif path.suffix == ".json":
        what, content = damaged_json(rng, json.loads(path.read_text()))
        path.write_bytes(content)
    else:
        what, content = damaged_bytes(rng, path.read_bytes())
        path.write_bytes(content)
    dataset = PackedDataset(MockDataset(3, image_size=SIDE, edit_share=0.0))

    def use() -> None:
        found = with_latents(dataset, folder, warm.model)
        for place in range(3):
            assert found[place]["latent_moments"].ndim == 3

    return Attempt(f"{path.name}: {what}", use)


CATEGORIES = (pictures, lists, batches, fonts, checkpoints, adapters, states, latents)
