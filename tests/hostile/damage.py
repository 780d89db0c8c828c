"""Damage of any file and of any JSON value, drawn from a generator of random numbers."""

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

DEEP = "[" * 20_000 + "]" * 20_000
HOSTILE = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, -0.0, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", " ", "x", "0", "nan", "\0", "a\nb", "\x1b[2J", "\ud800", "é" * 300, "../" * 50, "/dev/zero", "-", "你好"),
    *([], {}, [[]], [None], [[0, 0]], {"": None}, [1] * 5000, {"a": {"b": {}}}, "9" * 5000, ["x", 1, None, {}]),
)
"""Values that a field of a JSON may hold."""


def damaged_bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """The content damaged once, and how."""
    data, size = bytearray(content), max(1, len(content))
    kind = rng.choice("empty cut head flip flip run run zeros grow swap twice noise foreign".split())
    start, length = rng.randrange(size), rng.choice((1, 4, 64, 1000))
    near = rng.randrange(min(size, 256))  # headers are at the front
    if kind == "empty":
        data = bytearray()
    elif kind == "cut":
        del data[rng.choice((start, near)) :]
    elif kind == "head":
        del data[: 1 + near]
    elif kind == "flip":
        for _ in range(rng.choice((1, 1, 8, 100))):
            place = rng.choice((rng.randrange(size), rng.randrange(min(size, 256))))
            if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
    elif kind == "run":
        place = rng.choice((start, near))
        data[place : place + length] = rng.randbytes(length)
    elif kind == "zeros":
        data[start : start + length] = bytes(length)
    elif kind == "grow":
        data[start:start] = rng.randbytes(length)
    elif kind == "swap":
        other = rng.randrange(size)
        data[start : start + 64], data[other : other + 64] = data[other : other + 64], data[start : start + 64]
    elif kind == "twice":
        data = data * 2
    elif kind == "noise":
        data = bytearray(rng.randbytes(rng.choice((1, 100, 5000))))
    else:
        data = bytearray(rng.choice(FOREIGN))
    return kind, bytes(data)


FOREIGN = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"0" + b"\nsize 757076\n",
    b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
    b"%PDF-1.7\n",
    b"PK\x03\x04" + bytes(60),
    b"\x80\x04K\x01.",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"\xff\xfe[\x00]\x00",
    b"\xef\xbb\xbf",
    b"null",
    b"[" * 100_000,
    b"\x93NUMPY\x01\x00v\x00",
    b"\xff" * 8 + b"{}",
)
"""Files of other kinds."""


def odd_file(rng: random.Random, path: Path) -> str:
    """Put something that is no regular file, or an odd one, at `path`. Returns what."""
    kind = rng.choice(("pipe", "folder", "loop", "dangling", "missing", "zeros", "closed"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "closed":
        path.touch(0)
    return kind


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values within a JSON value, itself left out."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


def damaged_value(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A JSON value with one entry replaced, removed, doubled, renamed or added, and how."""
    value = copy.deepcopy(value)
    path = rng.choice(places(value))
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    key, kind = path[-1], rng.choice(("replace", "replace", "replace", "remove", "add", "wrap"))
    new = rng.choice(HOSTILE)
    if kind == "replace":
        inside[key] = new
    elif kind == "remove":
        del inside[key]
    elif kind == "wrap":
        inside[key] = [inside[key]]
    elif isinstance(inside, dict):
        inside[rng.choice(("x", "", "\x1b[2J", "é" * 300, "seed", "r"))] = new
    else:
        inside.insert(key, new)
    return f"{kind} {'.'.join(map(str, path))[:80]} {ascii(new)[:40] if kind in ('replace', 'add') else ''}", value


def damaged_json(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """The text of a JSON value with one to three entries changed or the text damaged, and how."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, json.dumps(value).encode())
    hows = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if places(value):
            how, value = damaged_value(rng, value)
            hows.append(how)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    dress = rng.random()
    if dress < 0.05:
        hows, text = [*hows, "deep"], text.replace("0", DEEP, 1)
    elif dress < 0.1:
        hows, text = [*hows, "joined"], text + text
    elif dress < 0.15:
        hows, text = [*hows, "BOM"], "\ufeff" + text
    encoding = "utf-16" if 0.15 < dress < 0.18 else "utf-8"
    return "; ".join(hows) + f" {encoding}", text.encode(encoding, "surrogatepass")
