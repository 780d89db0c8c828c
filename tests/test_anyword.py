"""Records from disk: items against upstream's, the rules for what is left to us, bad records, the index."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules, make_item
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.index import BadRecord, open_index
from anytext_lcm.data.light import expand
from anytext_lcm.data.records import Annotation, Record

REFERENCE = np.load(Path(__file__).parent / "reference" / "15_dataset.npz")
SIDE = 128


class FixedDraws:
    """The draws the reference was made with: the middle of a range, the first of a choice."""

    def random(self):
        return 0.5

    def uniform(self, low, high):
        return (low + high) / 2

    def integers(self, low, high):
        return low

    def permutation(self, n):
        return np.arange(n)


def reference_picture(number):
    y, x = np.mgrid[:SIDE, :SIDE]
    red, green = (3 * x + 40 * number) % 256, (2 * y + x) % 256
    return np.stack([red, green, 40 + 180 * ((x // 8 + y // 8 + number) % 2)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The three records of the reference with their pictures, in AnyWord's layout."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "data.json").write_text(str(REFERENCE["json"]), encoding="utf-8")
    for number in range(3):
        Image.fromarray(reference_picture(number)).save(folder / f"im{number}.png")
    return folder / "data.json"


def write_set(folder, records, **head):
    """A JSON of records; a grey picture for each name that does not exist yet."""
    folder.mkdir(exist_ok=True)
    for record in records:
        path = folder / record["img_name"]
        if not path.exists():
            Image.new("RGB", (SIDE, SIDE), (90, 120, 150)).save(path)
    path = folder / "data.json"
    path.write_text(json.dumps({"data_root": ".", **head, "data_list": records}), encoding="utf-8")
    return path


RULES = {
    "train": ReadingRules(image_size=SIDE, hint_share=1.0, hint_area=(1.0, 1.0), hint_shake=False),
    "edit": ReadingRules(image_size=SIDE, hint_share=1.0, hint_area=(0.7, 1.0), hint_shake=False, edit_share=1.0),
}

# -- against upstream -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("number", range(3))
def test_items_equal_upstream(published, mode, number):
    dataset = AnyWordDataset(published, rules=RULES[mode])
    _, record = dataset.record(number)
    item, problems = make_item(record, reference_picture(number), RULES[mode], FixedDraws())
    batch = expand(collate([item]))
    validate(batch)
    assert problems == []

    def wanted(name):
        return REFERENCE[f"{mode}.{number}.{name}"]

    n = int(wanted("n_lines"))
    assert batch["n_lines"].tolist() == [n]
    assert batch["img_caption"] == [str(wanted("img_caption"))]
    assert batch["text_caption"] == [str(wanted("text_caption"))]
    assert batch["texts"] == [wanted("texts")[:n].tolist()]
    assert batch["language"] == [wanted("language")[:n].tolist()]
    np.testing.assert_array_equal(batch["color"][0, :n], wanted("color")[:n])
    np.testing.assert_array_equal(batch["positions"][0], wanted("positions_u8")[..., 0])
    for name in ("hint", "inv_mask", "font_hint"):
        np.testing.assert_array_equal(batch[name][0, 0], wanted(f"{name}_u8")[..., 0], err_msg=name)
    np.testing.assert_array_equal(batch["masked_img"][0].permute(1, 2, 0), wanted("masked_img"))
    image = reference_picture(number).astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(batch["img"][0].permute(1, 2, 0), image)
    # FreeType versions differ in a few pixels of a line; the network reads which pixels are touched.
    for slot in range(n):
        assert np.count_nonzero(batch["gly_line"][0, slot] != wanted("gly_line_u8")[slot, ..., 0]) <= 32
        mine, theirs = batch["glyphs"][0, slot].numpy() > 0, wanted("glyphs_u8")[slot].any(-1)
        assert (mine & theirs).sum() >= 0.9 * (mine | theirs).sum()
