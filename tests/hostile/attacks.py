"""Categories of hostile pictures, JSONs and fonts, and the ways they come in. Each function draws one case; see
`campaign.py`.
"""

import io
import json
import random
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from campaign import Attempt
from damage import damaged_bytes, damaged_json, odd_file
from micro_network import SIDE
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
    network = ["--config", f"{warm.folder}/micro.yaml", "--ckpt", f"{warm.folder}/micro.safetensors", "--steps", "1"]
    with patch.object(loading, "load_model", lambda *_, **__: warm.model):  # undone: the parent warms up by it, too
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
    kinds = {"RGB": "PNG JPEG WEBP BMP GIF TIFF", "CMYK": "JPEG TIFF", "F": "TIFF", "I": "TIFF"}
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
        network = ["--config", f"{warm.folder}/micro.yaml", "--ckpt", f"{warm.folder}/micro.safetensors"]
        with patch.object(loading, "load_model", reached):
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
