"""Cropping, the line embeddings and the placeholders against reference outputs of upstream AnyText2."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_weights import X, blocky, fill, load_reference, relative_error

from anytext_lcm.model.crop import box_size, crop_image, crop_similarity, text_box, umeyama
from anytext_lcm.model.embedding_manager import EmbeddingManager, LineInputs, PositionEncoder, font_crops
from anytext_lcm.model.recogniser import Recogniser

TINY = dict(scale=0.25, neck_dims=32, hidden_dims=64, num_heads=4, num_classes=97)
CROPS = load_reference("09_crop")
CROP_CASES = sorted(name.removesuffix(".box") for name in CROPS if name.endswith(".box"))


@pytest.fixture(scope="module")
def gold():
    return load_reference("10_encode_text")


@pytest.fixture(scope="module")
def scene(gold):
    """Two samples of 128x128 with two and three lines; stored line-major, wanted sample-major."""

    def lines_second(name):
        return torch.from_numpy(gold[name]).transpose(0, 1)

    return LineInputs(
        gly_line=lines_second("gly_line_u8")[..., 0],
        positions=lines_second("positions_u8")[..., 0],
        color=lines_second("colors_255").float(),
        font_hint=torch.from_numpy(gold["font_hint_u8"]).permute(0, 3, 1, 2).float() / 255,
        n_lines=torch.from_numpy(gold["n_lines"]),
    )


@pytest.fixture(scope="module")
def manager():
    return fill(EmbeddingManager(), "embedding_manager.")


@pytest.fixture(scope="module")
def text_predictor():
    return fill(Recogniser(), "text_predictor.")


@pytest.fixture
def tiny_scene():
    torch.manual_seed(3)
    positions = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for sample, line in ((0, 0), (1, 0), (1, 1)):
        positions[sample, line, 20 * line + 4 : 20 * line + 20, 6:50] = 1
    return LineInputs(
        gly_line=(torch.rand(2, 3, 80, 512) > 0.8).to(torch.uint8),
        positions=positions,
        color=torch.tensor([255.0, 0, 20]).expand(2, 3, 3).clone(),
        font_hint=torch.rand(2, 1, 64, 64),
        n_lines=torch.tensor([1, 2]),
    )


def tiny_manager(**options):
    torch.manual_seed(5)
    return EmbeddingManager(64, TINY, position_widths=(4, 8, 12, 16, 20), **options)


# position encoder ------------------------------------------------------------------------------------------


def test_position_encoder(scene):
    reference = load_reference("08_encodenet")
    encoder = fill(PositionEncoder(768), "embedding_manager.position_encoder.")
    sample, line = reference["order_sample_line"].T
    with torch.no_grad():
        out = encoder(scene.positions[sample, line][:, None].float())
        out_noise = encoder(X("encodenet.x", (2, 1, 64, 96)))
    assert relative_error(out, reference["out"]) < 1e-5
    assert relative_error(out_noise, reference["out_noise"]) < 1e-5


# crop ------------------------------------------------------------------------------------------------------


def crop_mask(case):
    return np.unpackbits(CROPS[f"{case}.mask_packed"], axis=1) * 255


def test_crop_cases_are_all_there():
    kinds = {name.rpartition(".")[2] for name in CROPS if "." in name}
    assert len(CROP_CASES) == 12
    assert kinds == {
        "mask_packed",
        "polys",
        "box",
        "wh",
        "M",
        "out",
        "minAreaRect",
        "minAreaRect_opencv5",
        "modern_max_abs_diff",
    }


@pytest.mark.parametrize("case", CROP_CASES)
def test_crop(case):
    mask = crop_mask(case)
    height, width = CROPS["src_hw"].tolist()
    assert mask.shape == (height, width)
    box = text_box(mask)
    assert (box == CROPS[f"{case}.box"]).all()
    assert np.allclose(box_size(box), CROPS[f"{case}.wh"], rtol=1e-6)
    assert np.allclose(crop_similarity(box), CROPS[f"{case}.M"], rtol=1e-6, atol=1e-6)
    source = blocky("crop.img", 3, height, width)
    out = crop_image(source, mask)
    expected = torch.from_numpy(CROPS[f"{case}.out"])
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 0.02
    assert float(CROPS[f"{case}.modern_max_abs_diff"]) < 0.02


@pytest.mark.parametrize("case", CROP_CASES)
def test_crop_rectangle_in_this_opencv(case):
    """The polygon gives the mask, and the mask the rectangle in whichever convention this opencv follows."""
    polygons, mask = CROPS[f"{case}.polys"], np.zeros(CROPS["src_hw"], dtype=np.uint8)
    if not polygons.size:
        assert not crop_mask(case).any() and not CROPS[f"{case}.minAreaRect_opencv5"].size
        return
    cv2.fillPoly(mask, [np.asarray(p, dtype=np.int32) for p in polygons], 255)
    # versions of opencv round a polygon's edge differently; opencv 5 does so in 6 pixels of "border" alone
    assert (mask != crop_mask(case)).sum() <= 6
    contours = cv2.findContours(crop_mask(case), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    (cx, cy), (w, h), angle = cv2.minAreaRect(max(contours, key=cv2.contourArea))
    suffix = "_opencv5" if angle <= 0 else ""
    assert np.allclose([cx, cy, w, h, angle], CROPS[f"{case}.minAreaRect{suffix}"], atol=1e-3)


def test_crop_of_thin_masks_has_at_least_one_pixel():
    image = torch.rand(3, 32, 48) * 255
    for box in ((5, 6, 4, 20), (5, 20, 4, 5), (5, 6, 4, 5)):
        mask = np.zeros((32, 48), dtype=np.uint8)
        mask[box[0] : box[1], box[2] : box[3]] = 255
        out = crop_image(image, mask)
        assert out.shape[0] == 3 and min(out.shape) >= 1 and torch.isfinite(out).all()


def test_crop_takes_integer_images_and_torch_masks():
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[4:20, 6:40] = 255
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    assert torch.equal(crop_image(image, mask), crop_image(image.float(), mask.numpy()))


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.1, 10),
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
def test_umeyama_recovers_a_similarity(angle, scale, shift):
    points = np.array([[0, 0], [30, 2], [28, 11], [1, 9.0]])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = umeyama(points, points @ turn.T + shift)
    expected = [[*turn[0], shift[0]], [*turn[1], shift[1]], [0, 0, 1]]
    assert np.allclose(matrix, expected, atol=1e-8 * scale + 1e-8)


def test_umeyama_never_reflects():
    points = np.array([[0, 0], [30, 0], [30, 10], [0, 10.0]])
    matrix = umeyama(points, points * [1, -1])
    assert np.linalg.det(matrix[:2, :2]) > 0


def test_crop_bad_input():
    with pytest.raises(ValueError, match="one size"):
        crop_image(torch.zeros(3, 8, 8), np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        crop_image(torch.zeros(3, 8, 8), np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match="equal sets"):
        umeyama(np.zeros((3, 2)), np.zeros((4, 2)))


# line embeddings -------------------------------------------------------------------------------------------


def test_line_embeddings(manager, text_predictor, scene, gold):
    with torch.no_grad():
        parts = manager.line_embedding_parts(scene, text_predictor)
        rows = manager.line_embeddings(scene, text_predictor)
        glyphs = manager.encode_glyphs(text_predictor, scene.gly_line, scene.n_lines)
        fonts = manager.encode_fonts(scene.font_hint, scene.positions, scene.n_lines)
    assert [len(r) for r in rows] == gold["n_per_sample"].tolist()
    assert relative_error(torch.cat(rows), gold["embs"]) < 2e-5
    upstream = {"glyph": "proj", "position": "position_encoder", "font": "style_proj", "color": "color_proj"}
    for mine, name in upstream.items():
        assert relative_error(parts[mine], gold[f"part_{name}"]) < 2e-5, mine
    used = torch.arange(3) < scene.n_lines[:, None]
    assert relative_error(glyphs[used][:, ::10], gold["recog_neck_flat_every10th"]) < 2e-5
    assert relative_error(fonts[used][:, ::10], gold["style_neck_flat_every10th"]) < 2e-5
    assert (scene.color[used].numpy() == gold["color_in"]).all()
    assert not glyphs[~used].any() and not fonts[~used].any()


def test_font_crops(scene, gold):
    crops = font_crops(scene.font_hint, scene.positions, scene.n_lines)
    assert len(crops) == 5
    for i, crop in enumerate(crops):
        expected = torch.from_numpy(gold[f"style_crop_{i}_legacy"])
        assert crop.shape == (3, *expected.shape)
        assert (crop - expected).abs().max() < 0.02
    assert [not crop.any() for crop in crops] == gold["style_crop_is_zero"].tolist()


def test_upstream_s_enable_flag_is_refused():
    with pytest.raises(ValueError, match="enable_flag must be false"):
        EmbeddingManager(enable_flag=True)


def test_reference_scene_is_the_stored_one(scene, gold):
    """The glyph pictures belong to the same lines: only used slots carry ink or a position."""
    glyphs = torch.from_numpy(gold["glyphs_u8"]).transpose(0, 1)
    used = torch.arange(3) < scene.n_lines[:, None]
    assert (glyphs.flatten(2).any(-1) == used).all()
    assert (scene.positions.flatten(2).any(-1) == used).all()


def test_cached_features_give_the_same_embeddings(tiny_scene):
    manager, recogniser = tiny_manager().eval(), Recogniser(**TINY).eval()
    with torch.no_grad():
        rows = torch.cat(manager.line_embeddings(tiny_scene, recogniser))
        glyphs = manager.encode_glyphs(recogniser, tiny_scene.gly_line, tiny_scene.n_lines)
        fonts = manager.encode_fonts(tiny_scene.font_hint, tiny_scene.positions, tiny_scene.n_lines)
        given = replace(tiny_scene, gly_line=None, font_hint=None, glyph_features=glyphs, font_features=fonts)
        cached = manager.line_embeddings(given)
    assert torch.equal(torch.cat(cached), rows)
    assert [r.shape for r in cached] == [(1, 64), (2, 64)]


def test_unused_slots_do_not_matter(tiny_scene):
    manager, recogniser = tiny_manager().eval(), Recogniser(**TINY).eval()
    with torch.no_grad():
        rows = torch.cat(manager.line_embeddings(tiny_scene, recogniser))
        tiny_scene.gly_line[:, 2] = 1
        tiny_scene.positions[:, 2] = 1
        tiny_scene.color[:, 2] = 7
        assert torch.equal(torch.cat(manager.line_embeddings(tiny_scene, recogniser)), rows)


def test_recogniser_stays_frozen_and_keeps_its_mode(tiny_scene):
    manager, recogniser = tiny_manager().train(), Recogniser(**TINY).train()
    before = {k: v.clone() for k, v in recogniser.state_dict().items()}
    torch.cat(manager.line_embeddings(tiny_scene, recogniser)).square().sum().backward()
    assert recogniser.training and recogniser.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in recogniser.state_dict().items())
    assert all(p.grad is None for p in recogniser.parameters())
    missing = [n for n, p in manager.named_parameters() if p.grad is None]
    assert missing == ["font_predictor.head.fc.weight", "font_predictor.head.fc.bias"]


def test_half_precision_embeddings(tiny_scene):
    names = ("positions", "color", "n_lines", "gly_line", "font_hint")
    one = LineInputs(**{name: getattr(tiny_scene, name)[:1] for name in names})
    manager, recogniser = tiny_manager().bfloat16().eval(), Recogniser(**TINY).bfloat16().eval()
    with torch.no_grad():
        rows = torch.cat(manager.line_embeddings(one, recogniser))
    assert rows.dtype == torch.bfloat16 and torch.isfinite(rows).all()


def test_line_embeddings_bad_input(tiny_scene):
    manager, recogniser = tiny_manager().eval(), Recogniser(**TINY).eval()
    for change, message in (
        ({"n_lines": torch.tensor([0, 2])}, "between 1 and the 3"),
        ({"n_lines": torch.tensor([1, 4])}, "between 1 and the 3"),
        ({"gly_line": None}, "glyph_features"),
        ({"font_hint": None}, "font_hint"),
        ({"font_hint": torch.zeros(2, 2, 64, 64)}, "does not fit"),
        ({"color": torch.zeros(2, 2, 3)}, "color"),
        ({"positions": tiny_scene.positions[0]}, r"\(B,L,H,W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            manager.line_embeddings(replace(tiny_scene, **change), recogniser)


# placeholders ----------------------------------------------------------------------------------------------


def test_replace(manager, gold):
    tokens = torch.from_numpy(gold["forward_tokens"])
    embeddings = list(torch.from_numpy(gold["embs"]).split(gold["n_per_sample"].tolist()))
    embeds = torch.randn(2, 77, 768)
    out, counters = manager.replace(tokens, embeds, embeddings, [0, 0])
    changed = (out != embeds).any(-1).nonzero()
    assert (changed.numpy() == gold["forward_rows_changed"]).all()
    assert torch.equal(out[tuple(changed.T)], torch.cat(embeddings))
    assert counters == gold["forward_start_idx_after"].tolist()
    assert not torch.equal(out, embeds)


def tokens_with(*counts):
    tokens = torch.zeros(len(counts), 8, dtype=torch.long)
    for row, count in zip(tokens, counts, strict=True):
        row[1 : 1 + count] = 265
    return tokens


def test_replace_runs_on_across_chunks():
    manager, lines = tiny_manager(), [torch.randn(3, 64), torch.randn(1, 64)]
    first, counters = manager.replace(tokens_with(2, 0), torch.zeros(2, 8, 64), lines, [0, 0])
    assert counters == [2, 0] and torch.equal(first[0, 1:3], lines[0][:2])
    second, counters = manager.replace(tokens_with(1, 1), torch.zeros(2, 8, 64), lines, counters)
    assert counters == [3, 1]
    assert torch.equal(second[0, 1], lines[0][2]) and torch.equal(second[1, 1], lines[1][0])


def test_replace_broadcasts_the_last_line():
    manager, lines = tiny_manager(), [torch.randn(2, 64)]
    out, counters = manager.replace(tokens_with(3), torch.zeros(1, 8, 64), lines, [1])
    assert torch.equal(out[0, 1:4], lines[0][1].expand(3, -1)) and counters == [4]


@pytest.mark.parametrize(("lines", "counter", "wanted", "left"), [(2, 0, 3, 2), (2, 2, 1, 0), (0, 0, 1, 0)])
def test_replace_too_many_placeholders(lines, counter, wanted, left):
    embeddings = [torch.zeros(1, 64), torch.zeros(lines, 64)]
    with pytest.raises(ValueError, match=f"sample 1 has {wanted} placeholders .* but {left} of its {lines}"):
        tiny_manager().replace(tokens_with(1, wanted), torch.zeros(2, 8, 64), embeddings, [0, counter])


def test_replace_keeps_inputs_and_passes_gradients():
    manager = tiny_manager()
    embeds = torch.zeros(1, 8, 64, requires_grad=True)
    line = torch.ones(2, 64, requires_grad=True)
    counters = [0]
    out, _ = manager.replace(tokens_with(2), embeds, [line], counters)
    out.sum().backward()
    assert counters == [0] and not embeds.detach().any()
    assert (line.grad == 1).all() and embeds.grad.sum() == 6 * 64


def test_replace_bad_batch():
    with pytest.raises(ValueError, match="one batch"):
        tiny_manager().replace(tokens_with(1), torch.zeros(1, 8, 64), [], [0])
