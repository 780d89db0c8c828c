"""The recogniser, its pre-processing, decoding and loss against reference outputs of upstream AnyText2."""

import numpy as np
import pytest
import torch
from reference_weights import blocky, fill, load_reference, relative_error

from anytext_lcm.model.recogniser import (
    Recogniser,
    ctc_loss,
    decode_text,
    encode_text,
    greedy_decode,
    preprocess,
)

TINY = dict(scale=0.25, neck_dims=32, hidden_dims=64, num_heads=4, num_classes=97)


@pytest.fixture(scope="module")
def gold():
    return load_reference("07_ocr")


@pytest.fixture(scope="module")
def recogniser():
    return fill(Recogniser(), "text_predictor.")


@pytest.fixture(scope="module")
def images(gold):
    return [blocky(f"ocr.img{i}", 3, h, w) for i, (h, w) in enumerate(gold["img_sizes_hw"].tolist())]


@pytest.fixture(scope="module")
def outputs(recogniser):
    x = torch.stack([blocky(f"ocr.x{i}", 3, 48, 320) for i in range(2)]) / 127.5 - 1
    with torch.no_grad():
        return {"backbone": recogniser.backbone(x), **recogniser(x)}


def test_forward(outputs, gold):
    assert relative_error(outputs["ctc_neck"], gold["ctc_neck"]) < 1e-5
    assert relative_error(outputs["ctc"][:, :, ::25], gold["ctc_every25th_class"]) < 1e-5
    assert relative_error(outputs["ctc"][0, :4], gold["ctc_first4steps_sample0"]) < 1e-5
    assert relative_error(outputs["ctc"].logsumexp(-1), gold["ctc_logsumexp"]) < 1e-5
    assert relative_error(outputs["backbone"][:, ::32], gold["backbone_every32th_channel"]) < 1e-5
    assert (outputs["ctc"].argmax(-1).numpy() == gold["ctc_argmax"]).all()
    assert outputs["ctc"].shape[-1] == int(gold["n_chars"])


def test_preprocess(images, gold):
    assert relative_error(preprocess(images)[:, 0, ::3], gold["norm_every3rd_row_of_channel0"]) < 1e-5


def test_images_to_neck_and_classes(recogniser, images, gold):
    with torch.no_grad():
        features = recogniser.neck_features(images)
        output = recogniser(preprocess(images))
    neck = features.view(len(images), 40, -1)
    assert relative_error(neck.sum(1), gold["pred_neck_sum_over_time"]) < 1e-5
    assert (output["ctc"].argmax(-1).numpy() == gold["pred_argmax"]).all()
    # upstream goes by aspect w/h in groups; in eval mode any order and any grouping give the same rows
    order = sorted(range(len(images)), key=lambda i: images[i].shape[2] / images[i].shape[1])
    assert order == gold["sort_order"].tolist()
    with torch.no_grad():
        grouped = torch.cat(
            [
                recogniser.neck_features([images[i] for i in order[:2]]),
                recogniser.neck_features([images[i] for i in order[2:]]),
            ]
        )
    assert relative_error(grouped, features[order]) < 1e-5


def known_characters(gold):
    """The few classes the reference names, the rest filled with characters of the private use area."""
    characters = [chr(0xF0000 + i) for i in range(int(gold["n_chars"]))]
    for index, character in zip((0, 1, 2, -3, -2, -1), gold["chars_0_1_2_last3"].tolist(), strict=True):
        characters[index] = character
    for index, character in zip(gold["decode_out"].tolist(), str(gold["decode_text"]), strict=True):
        characters[index] = character
    for text, ids in zip(gold["ctcloss_gt"].tolist(), gold["ctcloss_ids"].tolist(), strict=True):
        for character, index in zip(text, ids.split(","), strict=True):
            characters[int(index)] = character
    return characters


def test_greedy_decode(gold):
    ids, steps = greedy_decode(gold["decode_in"].tolist())
    assert ids == gold["decode_out"].tolist()
    assert steps == gold["decode_idx"].tolist()
    text = decode_text(torch.from_numpy(gold["decode_in"]), known_characters(gold))
    assert text == str(gold["decode_text"])
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(gold["decode_in"]), int(gold["n_chars"]))
    assert greedy_decode(one_hot)[0] == ids


def test_ctc_loss(recogniser, images, gold):
    characters = known_characters(gold)
    targets = [encode_text(text, characters) for text in gold["ctcloss_gt"].tolist()]
    assert [",".join(map(str, ids)) for ids in targets] == gold["ctcloss_ids"].tolist()
    with torch.no_grad():
        logits = recogniser(preprocess(images[:2]))["ctc"]
    assert relative_error(ctc_loss(logits, targets), gold["ctcloss"]) < 1e-5
    assert torch.allclose(ctc_loss(logits, targets, weight=0.5), torch.from_numpy(gold["ctcloss"]) / 2)


def test_characters():
    characters = ["sos", "a", "b", " "]  # the blank, a dictionary of two lines, the space
    assert encode_text("ab?", characters) == [1, 2, 3]
    assert decode_text([1, 1, 0, 1, 2], characters) == "aab"


SIZES = [((48, 320), 320), ((80, 512), 308), ((10, 400), 320), ((1, 1), 48)]


@pytest.mark.parametrize(("size", "columns"), SIZES)
def test_preprocess_sizes(size, columns):
    out = preprocess([torch.full((3, *size), 255.0)])
    assert out.shape == (1, 3, 48, 320)
    assert (out[..., :columns] - 1).abs().max() < 1e-6 and (out[..., columns:] == 0).all()


def test_preprocess_turns_tall_crops_counter_clockwise():
    tall = torch.zeros(3, 100, 48)
    tall[:, :10] = 255  # the top edge ends up at the left
    out = preprocess([tall])[0, 0]
    assert out[:, 0].eq(1).all() and out[:, 90].eq(-1).all()
    assert torch.equal(preprocess([tall]), preprocess(tall[None].to(torch.uint8)))


def test_tiny_and_gradients():
    model = Recogniser(**TINY)
    out = model(preprocess([torch.rand(3, 40, 100) * 255] * 2))
    assert out["ctc_neck"].shape == (2, 40, 32) and out["ctc"].shape == (2, 40, 97)
    ctc_loss(out["ctc"], [[1, 2, 2], [5]]).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.feature_size == 1280


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = Recogniser(**TINY).to(dtype).eval()
    with torch.no_grad():
        features = model.neck_features([torch.rand(3, 20, 70) * 255])
    assert features.dtype == dtype and torch.isfinite(features).all()


def test_bad_input():
    with pytest.raises(ValueError, match="scale"):
        Recogniser(scale=0.3)
    with pytest.raises(ValueError, match="heads"):
        Recogniser(hidden_dims=60, num_heads=8)
    with pytest.raises(ValueError, match="preprocess"):
        Recogniser(**TINY)(torch.zeros(1, 3, 32, 320))
    with pytest.raises(ValueError, match="no images"):
        preprocess([])
    with pytest.raises(ValueError, match="at least 1"):
        preprocess([torch.zeros(3, 0, 5)])
    with pytest.raises(ValueError, match="one for each"):
        ctc_loss(torch.zeros(2, 40, 97), [[1]])


def test_blank_only_reads_as_nothing():
    assert greedy_decode(np.zeros(40, dtype=int).tolist()) == ([], [])
