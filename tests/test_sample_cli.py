"""The command that draws one picture: what it writes. What it refuses is in test_commands.py."""

import json

import cv2
import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_network
from PIL import Image

from anytext_lcm import sample
from anytext_lcm.adapter.lora import adapter_state, attach, save_adapter
from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing import png, prompts
from anytext_lcm.judging.ink import OBEYED, ink_distance
from anytext_lcm.model import loading, networks

LINE = "HELLO@10,40,118,80#yellow"


@pytest.fixture(scope="module")
def micro(teacher):
    """Flags of the micro network and of an adapter that changes what it draws."""
    model = attach(micro_network(), rank=2, alpha=2)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_state(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter = save_adapter(model, teacher / "adapter")
    return ["--config", teacher / "micro.yaml", "--ckpt", teacher / "micro.safetensors", "--adapter", adapter]


def run(*arguments):
    return sample.main(["--prompt", "a red background", *map(str, arguments)])


def test_weights_must_be_named():
    config = networks.EMBEDDED_CONFIG.with_name("anytext2_sd15.yaml")
    with pytest.raises(ValueError, match="--ckpt"):
        loading.load_chosen(config, None)
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        loading.load_chosen(networks.EMBEDDED_CONFIG, "nowhere.ckpt")


def test_lines_and_colours():
    line = prompts.parse_line("a@b#1@0,0,60,0,60,30,0,30##FF8000")
    assert line.text == "a@b#1" and line.color == (255, 128, 0) and line.polygon.shape == (4, 2)
    assert prompts.parse_line(LINE).color == COLORS["yellow"]
    assert prompts.parse_line("x@1,2,30,40").color is None
    for wrong in ("", "FFF", "RED", "ff ff ", "ff0 00", "500,500,500"):  # fromhex passes over spaces
        with pytest.raises(ValueError, match=f"Colour '{wrong}' is unknown"):
            prompts.parse_line(f"x@1,2,30,40#{wrong}")
    assert prompts.parse_line("x@1,2,30,40").polygon.tolist() == [[1, 2], [30, 2], [30, 40], [1, 40]]
    assert prompts.parse_line("x@10,10,30,20/90").polygon.tolist() == [[25, 5], [25, 25], [15, 25], [15, 5]]
    box = np.zeros((4, 2), int)
    taken = ("a@b", "@1,2", "1,2,3,4", "x@1,2,3,4 y")
    for text, words, color in (
        ("C#", "C#", None),
        ("a#red", "a", COLORS["red"]),
        *((text, text, None) for text in taken),
    ):
        line = prompts.parse_line(text, polygon=box)
        assert (line.text, line.color) == (words, color)
    for text in ("A@1,2,30,40", "A@1,2,30,40/10#red", "A@-1,2,30,40,5,6#ff8000"):
        with pytest.raises(ValueError, match="says a box, and the mask gives it another"):
            prompts.parse_line(text, polygon=box)


def test_teacher_and_student_pictures(micro, tmp_path, capsys):
    pictures = []
    for name, options in (("t", ["--adapter", "none", "--steps", 2]), ("s", ["--steps", 1]), ("again", ["--steps", 1])):
        target = tmp_path / "new" / f"{name}.png"
        assert run(*micro, "--line", "cat@4,4,60,30", "--output", target, *options) == 0
        assert capsys.readouterr().out.strip() == str(target)
        pictures.append(np.array(Image.open(target)))
    assert pictures[0].shape == (SIDE, SIDE, 3)
    assert np.array_equal(pictures[1], pictures[2]) and not np.array_equal(pictures[0], pictures[1])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["again.png", "s.png", "t.png"]


def test_a_colour_given_with_a_line_is_obeyed(tmp_path):
    """By the embedded network, whose caption is silent about it: the box holds letters of that colour, and no other."""
    polygon, distance = [[12, 44], [116, 44], [116, 84], [12, 84]], {}
    for color in ("red", "yellow"):
        prompt = ["--prompt", "a black background with text", "--line", f"SALE@12,44,116,84#{color}", "--seed", 3]
        picture = tmp_path / f"{color}.png"
        assert run("--adapter", "none", "--steps", 20, *prompt, "--output", picture) == 0
        drawn = np.array(Image.open(picture))
        distance[color] = {name: ink_distance(drawn, polygon, COLORS[name]) for name in ("red", "yellow")}
    for color, found in distance.items():
        [other] = found.keys() - {color}
        assert found[color] <= OBEYED < found[other], distance


def test_editing(micro, tmp_path):
    Image.new("RGB", (SIDE, 32), (9, 99, 9)).save(tmp_path / "in.png")
    edit = ["--line", "cat@4,4,60,28", "--image", tmp_path / "in.png", "--height", 32, "--steps", 1]
    assert run(*micro, *edit, "--output", tmp_path / "out.png") == 0
    assert Image.open(tmp_path / "out.png").size == (SIDE, 32)


def photograph(path, size=(SIDE, SIDE)):
    """A made-up photograph: a sky, a field, a sun, grain."""
    rng = np.random.default_rng(0)
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = np.stack([90 + y, 120 + x // 2, 200 - y], axis=-1).astype(float)
    picture[(x - width // 4) ** 2 + (y - height // 4) ** 2 < 80] = (250, 230, 120)
    picture = (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return picture


def test_settings_are_in_the_png_and_draw_it_again(micro, tmp_path):
    out = tmp_path / "a.png"
    words = ["--line", "cat@6,14,58,34/10#red", "--seed", 5, "--steps", 2, "--sampler", "gamma", "--w", 0.5]
    assert run(*micro, *words, "--negative_prompt", "blur", "--output", out) == 0
    found = png.read_settings(out)
    assert found["prompt"] == "a red background" and found["seed"] == 5 and found["size"] == [SIDE, SIDE]
    assert found["method"]["name"] == "student-2-gamma0.3-w0.5" and found["method"]["guidance_scale"] == 1.5
    assert found["negative_prompt"] == "blur" and found["mode"] == "generate"
    [line] = found["lines"]
    assert line["text"] == "cat" and line["color"] == list(COLORS["red"])
    assert found["adapters"] == [{"name": "adapter", "scale": 1.0}]
    assert str(tmp_path) not in str(found)  # names, not places of one machine
    assert run(*micro, *words, "--negative_prompt", "blur", "--output", tmp_path / "b.png") == 0
    assert out.read_bytes() == (tmp_path / "b.png").read_bytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "words.txt").write_text("no picture")
    for path in (tmp_path / "plain.png", tmp_path / "words.txt"):
        with pytest.raises(ValueError, match="no settings"):
            png.read_settings(path)
    with pytest.raises(FileNotFoundError):
        png.read_settings(tmp_path / "nowhere.png")
    assert run(*micro, "--line", "cat@4,4,60,30", "--output", tmp_path / "c.jpg") == 0


def test_the_weights_of_upstreams_demo(micro, tmp_path, capsys):
    line = ["--line", "cat@4,4,60,30", "--steps", 1, "--output", tmp_path / "a.png"]
    assert run(*micro, *line, "--attnx_scale", 0.5, "--strength", 1.5) == 0
    method = png.read_settings(tmp_path / "a.png")["method"]
    assert (method["attnx_scale"], method["strength"]) == (0.5, 1.5)
    capsys.readouterr()
    assert run(*micro, *line, "--strength", 2.5) == 2
    assert "strength must lie in 0..2, not 2.5" in capsys.readouterr().err


def test_several_seeds_are_the_pictures_of_each(micro, tmp_path, capsys):
    line = ["--line", "cat@4,4,60,30", "--steps", 2]
    assert run(*micro, *line, "--seed", 3, "--count", 3, "--output", tmp_path / "x.png") == 0
    names = [f"x_{seed}.png" for seed in (3, 4, 5)]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert run(*micro, *line, "--seed", 4, "--output", tmp_path / "one.png") == 0
    pictures = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in (*names, "one.png")]
    assert np.abs(pictures[1] - pictures[3]).max() <= 1 and np.abs(pictures[0] - pictures[1]).max() > 5
    assert png.read_settings(tmp_path / "x_5.png")["seed"] == 5


def test_samplers_differ_and_scale_0_is_the_untrained(micro, tmp_path):
    pictures = {}
    for name, options in {
        "lcm": ["--sampler", "lcm"],
        "deterministic": ["--sampler", "deterministic"],
        "gamma": ["--sampler", "gamma", "--gamma", "0.8"],
        "half": ["--adapter_scale", "0.5"],
        "twice": ["--mix", f"{micro[-1]}@1"],
        "ddim": ["--adapter", "none"],
        "attention": ["--attnx_scale", "0"],
        "weak": ["--strength", "0.2"],
    }.items():
        path = tmp_path / f"{name}.png"
        assert run(*micro, "--line", "cat@4,4,60,30", "--steps", 3, "--output", path, *options) == 0, name
        pictures[name] = np.asarray(Image.open(path)).astype(int)
    names = list(pictures)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).max() > 1, (one, other)


def test_text_goes_into_a_photograph_where_the_mask_is(micro, tmp_path):
    photo = photograph(tmp_path / "photo.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[6:24, 6:58], mask[36:54, 6:50] = 255, 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--line", "cat#red", "--line", "dog", "--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png"]
    assert run(*micro, *options, "--output", tmp_path / "raw.png") == 0
    assert run(*micro, *options, "--paste_back", "--output", tmp_path / "out.png") == 0
    found = png.read_settings(tmp_path / "out.png")
    assert found["mode"] == "edit" and found["image"] == "photo.png" and found["pasted_back"]
    assert [line["text"] for line in found["lines"]] == ["cat", "dog"]
    tops = [np.array(line["polygon"])[:, 1].min() for line in found["lines"]]
    assert tops == [6, 36] and found["lines"][0]["color"] == list(COLORS["red"])
    raw, out = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("raw", "out"))
    far = cv2.dilate(mask, np.ones((21, 21), np.uint8)) == 0
    assert np.array_equal(out[far], photo[far]) and not np.array_equal(raw[far], photo[far])
    inside = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
    assert np.array_equal(out[inside], raw[inside])


@pytest.mark.parametrize("kind", ["jpeg", "grey", "alpha", "turned"])
@pytest.mark.parametrize("fit", [False, True])
def test_masks_of_all_kinds_say_the_same_with_and_without_fit(micro, tmp_path, kind, fit):
    """Bright is where text goes: not the noise of JPEG, not what is darker than half, not what is transparent."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[6:24, 6:58], mask[36:54, 6:50] = 255, 255
    path = tmp_path / f"mask.{'jpg' if kind == 'jpeg' else 'png'}"
    if kind == "jpeg":
        Image.fromarray(mask).save(path, quality=30)
        assert ((found := np.asarray(Image.open(path))) > 0).mean() > (found > 127).mean() + 0.01  # there is noise
    elif kind == "grey":
        Image.fromarray(np.where(mask > 0, 200, 100).astype(np.uint8)).save(path)
    elif kind == "alpha":
        white = np.full((SIDE, SIDE, 3), 255, np.uint8)
        Image.fromarray(np.dstack([white, mask])).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(mask).copy()).save(path, exif=exif)
    options = ["--line", "cat", "--line", "dog", "--mask", path, "--output", tmp_path / "out.png"]
    assert run(*micro, *options, *(["--fit"] if fit else [])) == 0
    for line, (low, high) in zip(
        png.read_settings(tmp_path / "out.png")["lines"], [((6, 6), (57, 23)), ((6, 36), (49, 53))], strict=True
    ):
        box = np.array(line["polygon"])
        assert np.abs(box.min(axis=0) - low).max() <= 1 and np.abs(box.max(axis=0) - high).max() <= 1


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(tmp_path / "plain.png", (48, SIDE))
    Image.open(tmp_path / "plain.png").save(tmp_path / "photo.jpg", exif=exif)
    plain = np.asarray(Image.open(tmp_path / "photo.jpg"))
    assert np.array_equal(open_picture(tmp_path / "photo.jpg"), np.rot90(plain, -1))


def test_a_large_photograph_is_fitted(micro, tmp_path, capsys):
    photograph(tmp_path / "large.png", (200, 150))
    large = ["--line", "cat@4,4,60,30", "--image", tmp_path / "large.png", "--output", tmp_path / "out.png"]
    assert run(*micro, *large) == 2 and "picture to edit" in capsys.readouterr().err
    assert run(*micro, *large, "--fit", "--width", 128, "--paste_back") == 0
    assert Image.open(tmp_path / "out.png").size == (128, SIDE)
    Image.new("L", (5, 5)).save(tmp_path / "mask.png")
    assert run(*micro, *large, "--fit", "--mask", tmp_path / "mask.png") == 2
    assert "0 regions for 1 lines" in capsys.readouterr().err
    assert run(*micro, *large[:2], *large[4:], "--mask", tmp_path / "mask.png") == 2
    assert "5 x 5 pixels" in capsys.readouterr().err


def test_more_lines_than_it_was_trained_with(micro, tmp_path):
    lines = [f"l{i}@2,{2 + 12 * i},62,{13 + 12 * i}" for i in range(5)]
    words = [word for line in lines for word in ("--line", line)]
    assert run(*micro, *words, "--max_lines", 5, "--output", tmp_path / "five.png") == 0
    assert len(png.read_settings(tmp_path / "five.png")["lines"]) == 5


def test_a_line_may_begin_with_a_minus(micro, tmp_path):
    assert run(*micro, "--line=-50%@4,4,60,30", "--output", tmp_path / "out.png") == 0
    assert png.read_settings(tmp_path / "out.png")["lines"][0]["text"] == "-50%"


@pytest.mark.parametrize("device", ["banana", "cuda:99", "cuda:x", "mps", "vulkan"])
def test_a_device_that_is_not_there(micro, device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading.AnyText2, "from_config", lambda *_: pytest.fail("the network was built"))
    assert run(*micro, "--line", "cat@4,4,60,30", "--device", device, "--output", tmp_path / "out.png") == 2
    printed = capsys.readouterr().err
    assert f"Device '{device}' cannot be used" in printed and printed.count("\n") == 1
    assert ": there is cpu" in printed and len(printed) < 200
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_prompts(micro, tmp_path, capsys):
    """Each picture is that of its own prompt and seed, whatever is drawn beside it."""
    entries = [
        {"prompt": "a red background", "lines": ["cat@4,4,60,30#red"], "seed": 9},
        {"prompt": "a dog", "lines": ["dog@4,4,60,30", "42@4,34,60,60"]},
    ]
    (tmp_path / "batch.json").write_text(json.dumps(entries), encoding="utf-8-sig")  # with a BOM
    command = [*map(str, micro), "--steps", "2"]
    assert sample.main([*command, "--batch", str(tmp_path / "batch.json"), "--output", str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"x_{i}.png") for i in (0, 1)]
    assert png.read_settings(tmp_path / "x_1.png")["seed"] == 1  # --seed plus its place
    assert len(png.read_settings(tmp_path / "x_1.png")["lines"]) == 2
    assert run(*command, "--line", "cat@4,4,60,30#red", "--seed", 9, "--output", tmp_path / "one.png") == 0
    pair = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("x_0.png", "one.png")]
    assert np.abs(pair[0] - pair[1]).max() <= 1


ENTRY = {"prompt": "a wall", "lines": ["cat@4,4,60,30"]}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("[", "cannot be read"),
        ("[]", "at least one"),
        ('[{"lines": []}]', "Entry 0"),
        ('[{"prompt": "a", "lines": ["cat"]}]', "where it goes"),
        ('[{"prompt": "a", "lines": ["cat@4,4,60,30"], "seed": -1}]', "seed"),
        *(
            (f'[{{"prompt": "a", "lines": ["cat@4,4,60,30"], "seed": {seed}}}]', "seed must be an integer")
            for seed in ("1e400", "-1e400", "NaN", "1.5", "2.0", "true", '"1"', "null")
        ),
        ('[{"prompt": "a", "lines": ["cat@4,4,60,30"], "sed": 1}]', "'sed' is unknown"),
        ('[{"prompt": "a", "lines": ["cat@4,4,60,30"]}] [', "cannot be read"),
        ('[{"prompt": "a", "lines": [5]}]', "list of texts"),
        ('[{"prompt": "a", "lines": ["\\u200b@4,4,60,30"]}]', "invisible"),
        ('[{"prompt": "\\udcff", "lines": ["cat@4,4,60,30"]}]', "not UTF-8"),
        *(
            (json.dumps([ENTRY, ENTRY | changes]), f"Entry 1 of {{file}} {words}")
            for changes, words in (
                ({"seed": -1}, "is wrong: seed must be an integer from 0 on, not -1"),
                ({"prompt": "a\n"}, "cannot be drawn: The prompt 'a\\n' holds control characters"),
                ({"lines": 101 * ["cat@4,4,60,30"]}, "cannot be drawn: 101 lines do not fit"),
            )
        ),
        ("[5]", "must be an object"),
        (100_000 * "[", "cannot be read"),
    ],
)
def test_wrong_batches(entries, words, tmp_path, capsys):
    (tmp_path / "b.json").write_text(entries)
    assert sample.main(["--adapter", "none", "--batch", str(tmp_path / "b.json")]) == 2
    error = capsys.readouterr().err
    assert words.replace("{file}", str(tmp_path / "b.json")) in error and error.count("\n") == 1
    for more in ([], ["--prompt", "a", "--batch", str(tmp_path / "b.json")]):
        assert sample.main(["--adapter", "none", *more]) == 2
