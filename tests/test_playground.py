"""The playground with and without widgets: what a button does is a function, and a refusal is said in words."""

import base64
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_network
from PIL import Image

from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing import editing
from anytext_lcm.drawing import play as play_module
from anytext_lcm.drawing.methods import student_method, teacher_method
from anytext_lcm.drawing.play import LineBox, Scene, draw_scene
from anytext_lcm.drawing.png import png_bytes
from anytext_lcm.model.networks import Defaults
from anytext_lcm.teaching import playground_form

WHEN = datetime(2020, 1, 1)
DEFAULTS = Defaults((SIDE, SIDE), 2, 2.0, "")
BOXES = [
    LineBox("cat", 4, 4, 60, 28, 5, "red"),
    LineBox("", 0, 0, 1, 1),
    LineBox("dog", 4, 34, 60, 58, color="#0080ff"),
]


class Echo:
    """A reader that always reads the same."""

    def read(self, images, polygons):
        assert np.asarray(images).dtype == np.uint8
        return [["CAT", "", "x", "y", "z"][: len(lines)] for lines in polygons]


@pytest.fixture(scope="module")
def model():
    model = attach(micro_network(), rank=2, alpha=2)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_state(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 255, (100, 150, 3)).astype(np.uint8)


def upload(picture):
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    content = buffer.getvalue()
    return ({"name": "a.png", "type": "image/png", "size": len(content), "content": content, "last_modified": WHEN},)


# -- without widgets ------------------------------------------------------------------------------------


def test_a_picture_with_its_costs_and_what_was_read(model):
    defaults = play_module.with_lines(DEFAULTS)
    drawn = draw_scene(model, Scene("a wall", BOXES), student_method(2), 3, defaults, Echo())
    assert drawn.image.shape == (SIDE, SIDE, 3) and drawn.image.dtype == np.uint8
    assert drawn.wanted == ("cat", "dog") and drawn.read == ("CAT", "")
    assert set(drawn.seconds) == {"prepare", "denoise", "decode"} and drawn.total > 0
    words = drawn.report()
    assert "student-2: 2 evaluations" in words and '"CAT", nothing' in words and "1 of 2 right" in words
    again = draw_scene(model, Scene("a wall", BOXES), student_method(2), 3, defaults)
    assert np.array_equal(again.image, drawn.image) and again.read is None and "Read" not in again.report()
    teacher = draw_scene(model, Scene("a wall", BOXES), teacher_method(2, 2.0), 3, defaults)
    assert not np.array_equal(teacher.image, drawn.image) and teacher.method.evaluations == 4


def test_a_picture_of_the_student_costs_one_call_per_step(model, monkeypatch):
    """One row in each call, since there is no guidance; WriteNet once, and nothing is encoded but the blank picture."""
    calls = []

    def counted(name):
        original = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda x, *rest, **more: calls.append((name, len(x))) or original(x, *rest, **more)
        )

    for name in ("predict_noise", "control", "decode"):
        counted(name)
    draw_scene(model, Scene("a wall", BOXES), student_method(4), 0, DEFAULTS)
    assert calls == [("control", 1), *[("predict_noise", 1)] * 4, ("decode", 1)]


def test_a_photograph_keeps_its_pixels(model, photo):
    defaults = play_module.with_lines(DEFAULTS)
    boxes = [LineBox("cat", 4, 4, 60, 24)]
    drawn = draw_scene(model, Scene("a wall", boxes, photo), student_method(1), 0, defaults)
    fitted = editing.fit_picture(photo, (SIDE, SIDE))
    assert np.array_equal(drawn.image[40:], fitted[40:]) and not np.array_equal(drawn.image[8:20], fitted[8:20])
    free = draw_scene(model, Scene("a wall", boxes, photo, keep_outside=False), student_method(1), 0, defaults)
    assert not np.array_equal(free.image[40:], fitted[40:])


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], "no line"),
        ([LineBox("  ", 0, 0, 9, 9)], "no line"),
        ([LineBox("x", 9, 0, 9, 9)], "empty"),
        ([LineBox("x", 0, 0, 60, 30, 45)], "leaves the picture"),
        ([LineBox("x", 0, 0, 60, 30, 180)], "angle must lie"),
        ([LineBox("x", 0, 0, 60, 30, color="mauve")], "unknown"),
        ([LineBox("x" * 21, 0, 0, 60, 30)], "limit is 20"),
        ([LineBox("你", 0, 0, 60, 30)], "no glyph"),
    ],
)
def test_what_cannot_be_drawn(model, boxes, words):
    with pytest.raises(ValueError, match=words):
        draw_scene(model, Scene("a wall", boxes), student_method(1), 0, DEFAULTS)


def test_layout_and_files(photo):
    grey = play_module.layout(BOXES, (SIDE, SIDE), scale=3)
    assert grey.shape == (3 * SIDE, 3 * SIDE, 3)
    assert (grey == COLORS["red"]).all(axis=2).any() and (grey == (0, 128, 255)).all(axis=2).any()
    outside = play_module.layout([LineBox("x", 0, 0, 64, 30, 45)], (SIDE, SIDE))
    assert (outside == (220, 0, 0)).all(axis=2).any()
    assert not np.array_equal(play_module.layout([], (SIDE, SIDE), photo), play_module.layout([], (SIDE, SIDE)))
    assert open_picture(png_bytes(photo, 2)).shape == (200, 300, 3)
    assert np.array_equal(open_picture(png_bytes(photo)), photo)
    with pytest.raises(ValueError, match="cannot be read"):
        open_picture(b"text")


def test_an_upload_is_turned_as_its_exif_says(photo):
    exif, buffer = Image.Exif(), BytesIO()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(photo).save(buffer, "JPEG", exif=exif)
    plain = np.asarray(Image.open(buffer))
    assert np.array_equal(open_picture(buffer.getvalue()), np.rot90(plain, -1))


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (512, 512), (256, 512)])
def test_default_boxes_lie_inside(size):
    boxes = play_module.default_boxes(size)
    assert len(boxes) == 5 and boxes[0].text and not any(box.text for box in boxes[1:])
    for box in boxes:
        corners = box.line().polygon
        assert corners.min() >= 0 and corners[:, 0].max() <= size[1] and corners[:, 1].max() <= size[0]


# -- widgets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def form(model):
    return playground_form.Playground(model, DEFAULTS, Echo())


def test_buttons_draw(form, model):
    form.buttons["student"].click()
    assert set(form.drawn) == {"student"} and form.pictures["teacher"].layout.display == "none"
    shown = np.asarray(Image.open(BytesIO(form.pictures["student"].value)))
    assert shown.shape[0] % SIDE == 0 and "4 evaluations" in form.reports["student"].value
    form.teacher_steps.value, form.steps.value, form.sampler.value = 2, 2, "gamma 0.3"
    form.buttons["both"].click()
    assert form.drawn["teacher"].method == teacher_method(2, 2.0)
    assert form.drawn["student"].method == student_method(2, gamma=0.3)
    assert form.message.value == "" and not any(button.disabled for button in form.buttons.values())
    before = form.pictures["student"].value
    form.seed.value = 5
    form.press("student")
    assert form.pictures["student"].value != before


def test_the_weights_of_upstreams_demo(form):
    assert {form.method(name).strength for name in ("student", "teacher")} == {1.0}
    form.attnx_scale.value, form.strength.value = 0.5, 0.25
    for name in ("student", "teacher"):
        assert (form.method(name).attnx_scale, form.method(name).strength) == (0.5, 0.25)
    form.press("student")
    weak = form.drawn["student"].image
    form.attnx_scale.value = form.strength.value = 1.0
    form.press("student")
    assert not np.array_equal(weak, form.drawn["student"].image)


def test_boxes_are_sketched_as_they_move(form):
    before = form.sketch.value
    form.rows[0].angle.value = 4
    form.rows[1].text.value = "dog"
    assert form.sketch.value != before and [box.text for box in form.boxes()][:2] == ["maple", "dog"]
    form.rows[1].text.value, form.rows[0].angle.value = "", 0


def test_editing_needs_a_picture(form, photo):
    form.mode.value = "edit"
    assert "Upload" in form.message.value
    before = form.pictures["student"].value
    form.press("student")
    assert "Upload" in form.message.value and form.pictures["student"].value == before
    form.upload.value = upload(photo)
    form.press("student")
    assert form.message.value == "" and form.pictures["student"].value != before
    form.mode.value = "generate"


def test_a_refusal_is_said_in_words(form):
    form.rows[0].across.value = (9, 9)
    assert "empty" in form.message.value
    form.press("teacher")
    assert "empty" in form.message.value and not form.buttons["teacher"].disabled
    form.rows[0].across.value = (4, 60)
    assert form.message.value == ""


def test_stored_output_is_steady_and_has_the_pictures(form, model):
    bundle, metadata = form._repr_mimebundle_()
    assert bundle["text/plain"] == repr(form) == "Playground(5 lines)"
    assert metadata == {"image/png": {"width": 576}}
    both = Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    empty = playground_form.Playground(model, DEFAULTS, Echo())
    alone = Image.open(BytesIO(base64.b64decode(empty._repr_mimebundle_()[0]["image/png"])))
    assert not empty.drawn and both.size[0] == alone.size[0] == 2 * 576
    drawn = playground_form.Playground(model, DEFAULTS, Echo(), first="student")
    assert set(drawn.drawn) == {"student"} and not drawn.stale("student")


def test_a_picture_that_is_out_of_date_is_greyed(form):
    form.press("both")
    fresh = {name: bytes(picture.value) for name, picture in form.pictures.items()}
    form.teacher_steps.value = 4  # concerns the teacher alone
    assert form.stale("teacher") and not form.stale("student")
    assert form.pictures["student"].value == fresh["student"] and form.pictures["teacher"].value != fresh["teacher"]
    assert "out of date" in form.headings["teacher"].value and form.reports["teacher"].value == ""
    form.rows[0].text.value = "oak"
    assert form.stale("student") and "out of date" in form.headings["student"].value
    form.teacher_steps.value, form.rows[0].text.value = 2, "maple"
    assert {name: bytes(picture.value) for name, picture in form.pictures.items()} == fresh
    assert (
        form.headings["student"].value == "<b>student, 2 steps</b>" and "evaluations" in form.reports["student"].value
    )


def test_no_control_is_there_in_vain(form, model):
    assert form.upload.layout.display == "none"  # nothing is edited
    form.mode.value = "edit"
    assert form.upload.layout.display == ""
    form.mode.value = "generate"
    assert form.rows[0].color in form.rows[0].children
    row = playground_form.Playground(model, DEFAULTS).rows[0]
    assert row.across.description == f"across {row.across.value[0]} to {row.across.value[1]}"
