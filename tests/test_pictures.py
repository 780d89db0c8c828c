"""Picture files from outside: what is read, how, and what is refused without a program, a wait or much memory."""

import json
import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.pictures import FORMATS, MAX_PIXELS, open_picture, picture_size
from anytext_lcm.drawing.editing import read_mask

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(out) (w) file\nshowpage\n%%EOF\n"
RAMP = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
QUAD = [[8, 16], [56, 16], [56, 40], [8, 40]]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_whatever_its_name(kind, tmp_path):
    picture = Image.new("RGB", (20, 30), (200, 30, 60))
    picture.save(tmp_path / "picture.dat", format=kind)
    found = open_picture(tmp_path / "picture.dat")
    assert found.shape == (30, 20, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - (200, 30, 60)).max() <= 3
    assert np.array_equal(open_picture((tmp_path / "picture.dat").read_bytes()), found)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.eps"])
def test_an_eps_starts_no_program(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(EPS)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a program was started"))
    for source in (tmp_path / name, EPS):
        with pytest.raises(ValueError, match="cannot be read.*none of JPEG"):
            open_picture(source)
    with pytest.raises(ValueError, match="none of JPEG"):
        read_mask(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            open_picture(path)


def test_what_is_missing_or_damaged_is_said(tmp_path):
    buffer = BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    whole = buffer.getvalue()
    with pytest.raises(FileNotFoundError, match="gone.png does not exist"):
        open_picture(tmp_path / "gone.png")
    for content in (b"", b"text", whole[:30], whole[: len(whole) // 2], whole[:40] + bytes(200) + whole[240:]):
        with pytest.raises(ValueError, match="that was uploaded cannot be read"):
            open_picture(content)
    for path in ("a\0b.png", "x" * 300 + ".png"):
        with pytest.raises(ValueError, match="cannot be read"):
            open_picture(path)


@pytest.mark.parametrize("kind", ["16 bits", "16 bits, big-endian", "int32", "float", "levels", "share"])
def test_deep_greys_lose_their_lower_bits(kind, tmp_path):
    path = tmp_path / ("ramp.png" if kind == "16 bits" else "ramp.tif")
    values = {
        "16 bits": RAMP,
        "16 bits, big-endian": RAMP.astype(">u2"),
        "int32": RAMP.astype(np.int32),
        "float": RAMP.astype(np.float32),
        "levels": (RAMP / 257).astype(np.float32),
        "share": (RAMP / 65535).astype(np.float32),
    }[kind]
    Image.fromarray(values).save(path)
    wanted = (RAMP >> 8).astype(int)
    for found in (*np.moveaxis(open_picture(path), 2, 0), read_mask(path)):
        assert np.abs(found - wanted).max() <= 1, kind


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e9])
def test_what_are_no_grey_levels_is_refused(value, tmp_path):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="grey levels"):
        open_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white_and_what_is_half_half(mode, tmp_path):
    picture = Image.new("RGBA", (3, 1), (90, 90, 90, 255))
    picture.putpixel((0, 0), (90, 90, 90, 0))
    if mode == "P":
        flat = Image.new("P", (3, 1), 1)
        flat.putpalette([0, 0, 0, 90, 90, 90])
        flat.putpixel((0, 0), 0)
        flat.save(tmp_path / "a.png", transparency=0)
    else:
        picture.putpixel((2, 0), (90, 90, 90, 128))
        picture.convert(mode).save(tmp_path / "a.png")
    found = open_picture(tmp_path / "a.png")[0, :, 0]
    assert found[:2].tolist() == [255, 90] and (mode == "P" or abs(int(found[2]) - 172) <= 1)
    assert open_picture(tmp_path / "a.png", backing="black")[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_but_not_those_with_polygons(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(open_picture(tmp_path / "a.png"), ImageOps.exif_transpose(picture))
        assert np.array_equal(open_picture(tmp_path / "a.png", turned=False), picture)
    for turned in (True, False):
        height, width = open_picture(tmp_path / "a.png", turned=turned).shape[:2]
        assert picture_size(tmp_path / "a.png", turned=turned) == (width, height)


def test_a_broken_exif_spoils_no_picture(tmp_path, recwarn):
    for number, exif in enumerate((b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"no TIFF at all")):
        Image.new("RGB", (3, 2)).save(tmp_path / f"{number}.jpg", exif=exif)
        assert open_picture(tmp_path / f"{number}.jpg").shape == (2, 3, 3)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(8000, 6000), (13_000, 13_000), (30_000, 30_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size, tmp_path, recwarn):
    """Only the header is right; decoding would say that the pixels are missing."""
    buffer = BytesIO()
    Image.new("1", (8, 8)).save(buffer, "BMP")
    header = bytearray(buffer.getvalue())
    header[18:26] = b"".join(side.to_bytes(4, "little") for side in size)
    (tmp_path / "a.bmp").write_bytes(header)
    with pytest.raises(ValueError, match="more than 40 megapixels"):
        open_picture(tmp_path / "a.bmp")
    assert not recwarn.list


LARGE = """
import re, sys
from anytext_lcm.data.pictures import open_picture
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
before = peak()
open_picture(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["RGBA", "F", "JPEG"])
def test_the_largest_picture_stays_below_500_mb(kind, tmp_path):
    width = 8000
    height, exif = MAX_PIXELS // width, Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / ("a.jpg" if kind == "JPEG" else "a.tif" if kind == "F" else "a.png")
    options = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {"compress_level": 1}
    Image.new("RGB" if kind == "JPEG" else kind, (width, height)).save(path, exif=exif, **options)
    done = subprocess.run([sys.executable, "-c", LARGE, path], capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 500


def test_records_with_such_pictures_are_stepped_over_and_deep_ones_are_read(tmp_path):
    (tmp_path / "eps.jpg").write_bytes(EPS)
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    line = {"polygon": QUAD, "text": "Word", "language": "Latin", "valid": True}
    names = ("eps.jpg", "pipe.jpg", "deep.png")
    records = [{"img_name": name, "caption": name, "annotations": [line]} for name in names]
    (tmp_path / "data.json").write_text(json.dumps({"data_root": ".", "data_list": records}))
    item = AnyWordDataset(tmp_path / "data.json", rules=ReadingRules(image_size=64))[0]
    assert item["img_name"] == "deep.png" and len(item["problems"]) == 2
    assert np.array_equal(item["picture"][..., 0], RAMP >> 8)
