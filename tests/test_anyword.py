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
from anytext_lcm.data.packed import expand
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
    for path in (folder / record["img_name"] for record in records if isinstance(record, dict)):
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


def test_a_record_is_not_changed_by_reading(published):
    """Upstream's invalid polygons and captions grow from access to access, and a hint clips its polygon."""
    dataset = AnyWordDataset(published, rules=RULES["train"])
    before = dataset.record(2)
    first, again = dataset[2], dataset[2]
    np.testing.assert_array_equal(first["inv_mask_packed"], again["inv_mask_packed"])
    assert first["img_caption"] == again["img_caption"] and dataset.record(2) == before
    for access in range(2, 20, 3):  # two spare lines, never more: the largest two have 1218 and 1190 pixels
        assert 2 * 1050 <= np.unpackbits(dataset[access]["inv_mask_packed"]).sum() <= 1218 + 1190


def test_draws_depend_on_seed_and_index_alone(published):
    rules = ReadingRules(image_size=SIDE, edit_share=0.5, max_lines=3)
    one, other = AnyWordDataset(published, rules=rules, seed=3), AnyWordDataset(published, rules=rules, seed=3)
    assert_same(one[8], other[8])  # the third access of record 2
    assert one.record(2)[1].number == 2 and one[8]["img_name"] == "im2.png"
    texts = {tuple(one[2 + 3 * epoch]["texts"]) for epoch in range(6)}
    assert len(texts) > 1  # other lines of the seven are chosen from epoch to epoch
    loader = torch.utils.data.DataLoader(one, batch_size=3, num_workers=2, collate_fn=collate)
    [batch] = list(loader)
    assert_same(batch, collate([other[i] for i in range(3)]))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], np.ndarray | torch.Tensor):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        elif name == "polygons":
            assert str(one[name]) == str(other[name])
        else:
            assert one[name] == other[name], name


# -- what is left to us -----------------------------------------------------------------------------------


def line(text="Word", polygon=((10, 40), (110, 40), (110, 70), (10, 70)), **fields):
    return {"polygon": [list(p) for p in polygon], "text": text, "language": "Latin", **fields}


def test_polygons_follow_a_picture_that_is_resized(tmp_path):
    Image.new("RGB", (256, 512)).save(tmp_path / "tall.png")
    quad = ((20, 160), (220, 160), (220, 280), (20, 280))
    path = write_set(tmp_path, [{"img_name": "tall.png", "annotations": [line(polygon=quad)]}])
    rules = ReadingRules(image_size=SIDE, jitter=False)
    [polygon] = AnyWordDataset(path, rules=rules)[0]["polygons"]
    assert polygon.tolist() == [[10, 40], [110, 40], [110, 70], [10, 70]]


def test_one_missing_glyph_costs_a_line_and_not_the_run(tmp_path):
    low = ((10, 80), (110, 80), (110, 110), (10, 110))
    path = write_set(tmp_path, [{"img_name": "a.png", "annotations": [line("字"), line("two", low)]}])
    item = AnyWordDataset(path, rules=ReadingRules(image_size=SIDE))[0]
    assert item["texts"] == ["two"] and len(item["problems"]) == 1
    assert "record 0, glyph: No font of DejaVuSans.ttf has '字' (U+5B57)" in item["problems"][0]
    ignored = np.unpackbits(item["inv_mask_packed"][0], axis=-1)
    assert ignored[41:70, 11:110].all() and not ignored[75:].any()  # the loss does not look where it stands
    with pytest.raises(BadRecord, match="record 0, glyph"):
        AnyWordDataset(path, rules=ReadingRules(image_size=SIDE), strict=True)[0]


def test_a_line_outside_is_left_out_and_one_over_the_edge_is_cut(tmp_path):
    away = ((200, 40), (300, 40), (300, 70), (200, 70))
    over = ((60, 40), (160, 40), (160, 70), (60, 70))
    path = write_set(tmp_path, [{"img_name": "a.png", "annotations": [line("away", away), line("over", over)]}])
    item = AnyWordDataset(path, rules=ReadingRules(image_size=SIDE, jitter=False))[0]
    assert item["texts"] == ["over"] and "outside" in item["problems"][0]
    assert np.unpackbits(item["positions_packed"][0], axis=-1).sum() == 31 * (SIDE - 60)


def test_watermarks(tmp_path):
    records = [{"img_name": "a.png", "wm_score": score} for score in (0.1, 0.9, 0.4, 0.95, 0.2, 0.3)]
    path = write_set(tmp_path, records)
    rules = ReadingRules(image_size=SIDE)

    def numbers(**options):
        dataset = AnyWordDataset(path, rules=rules, **options)
        return [dataset.record(i)[1].number for i in range(len(dataset))]

    assert numbers() == [0, 1, 2, 3, 4, 5]
    assert numbers(wm_thresh=0.5) == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="is left of 6: wm_thresh 0.05 leaves out 6 for their watermarks; change that"):
        numbers(wm_thresh=0.05)
    with pytest.raises(
        ValueError, match="leaves out 2 for their watermarks and a held-out share of 1e-06 has none of 4"
    ):
        numbers(wm_thresh=0.5, share=1e-6, held_out=True)


def test_several_jsons_are_one_data_set(tmp_path):
    first = write_set(tmp_path / "a", [{"img_name": "1.png", "caption": "one"}])
    second = write_set(tmp_path / "b", [{"img_name": f"{i}.png", "caption": f"b{i}"} for i in range(3)])
    rules = ReadingRules(image_size=SIDE, caption_words=0)
    dataset = AnyWordDataset([first, second], rules=rules)
    assert [dataset[i]["img_caption"] for i in range(4)] == ["one", "b0", "b1", "b2"]
    with pytest.raises(IndexError, match="outside the data set of 4"):
        dataset.record(4)


def test_data_root_can_be_replaced(tmp_path):
    path = write_set(tmp_path / "a", [{"img_name": "1.png"}], data_root="/no/such/folder")
    rules = ReadingRules(image_size=SIDE)
    with pytest.raises(FileNotFoundError, match="1 records in a row have no picture.*is missing.*Check data_root"):
        AnyWordDataset(path, rules=rules)[0]
    assert AnyWordDataset(path, data_root=tmp_path / "a", rules=rules)[0]["problems"] == []


def test_unreadable_pictures_are_stepped_over_and_named(tmp_path):
    path = write_set(tmp_path, [{"img_name": f"{i}.jpg", "caption": f"no {i}"} for i in range(4)])
    (tmp_path / "0.jpg").unlink()
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.jpg").write_text("no picture")
    dataset = AnyWordDataset(path, rules=ReadingRules(image_size=SIDE, caption_words=0))
    item = dataset[0]
    assert item["img_caption"] == "no 3"
    for number, said in enumerate(("is missing", "cannot be read (", "none of JPEG")):
        assert f"record {number}, picture" in item["problems"][number] and said in item["problems"][number]
    with pytest.raises(BadRecord, match="record 0, picture"):
        AnyWordDataset(path, rules=ReadingRules(image_size=SIDE), strict=True)[0]
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileNotFoundError, match="4 records in a row .*3.jpg cannot be read .*Check data_root"):
        dataset[0]


def test_what_a_file_says_reaches_the_terminal_as_one_line(tmp_path):
    name = "\x1b[2Ja\nb\u202e\u6c49.png"
    path = write_set(tmp_path, [{"img_name": "ok.png"}])
    path.write_text(json.dumps({"data_root": ".", "data_list": [{"img_name": name}, {"img_name": "ok.png"}]}))
    [said] = AnyWordDataset(path, rules=ReadingRules(image_size=SIDE))[0]["problems"]
    assert "/\\x1b[2Ja\\nb\\u202e\u6c49.png is missing" in said and said.isprintable()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_size": 100}, "multiple of 8"),
        ({"max_lines": 0}, "at least one line slot"),
        ({"max_characters": 21}, "1..20"),
        ({"edit_share": 1.5}, "edit_share is 1.5"),
        ({"hint_area": (0.9, 0.5)}, "two rising shares"),
        ({"fonts": ()}, "at least one"),
    ],
)
def test_rules_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReadingRules(**arguments)


def test_arguments_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        AnyWordDataset(tmp_path / "no.json")
    with pytest.raises(ValueError, match="no JSON"):
        AnyWordDataset([])
    bare = tmp_path / "bare.json"
    bare.write_text('{"data_list": [{"img_name": "a.png"}]}')
    with pytest.raises(ValueError, match="names no data_root"):
        AnyWordDataset(bare)
    bare.write_text('{"data_root": "."}')
    with pytest.raises(ValueError, match="no 'data_list'"):
        AnyWordDataset(bare)
    bare.write_text('{"data_root": ".", "data_list": [5]}')
    with pytest.raises(ValueError, match="No record of .* can be used; the first problem: .*record 0"):
        AnyWordDataset(bare)


# -- the index --------------------------------------------------------------------------------------------


def test_index_follows_its_json(tmp_path):
    path = write_set(tmp_path, [{"img_name": "a.png", "caption": "first"}])
    assert open_index(path)[0].caption == "first"
    built = (tmp_path / "data.json.index" / "records.arrow").stat().st_mtime_ns
    open_index(path)
    assert (tmp_path / "data.json.index" / "records.arrow").stat().st_mtime_ns == built  # built once
    write_set(tmp_path, [{"img_name": "a.png", "caption": "another one"}])
    assert open_index(path)[0].caption == "another one"


def test_index_may_lie_elsewhere_and_is_whole_or_not_there(tmp_path):
    path = write_set(tmp_path / "set", [{"img_name": "a.png"}, 7])
    with pytest.raises(BadRecord, match="data.json, record 1, record: it is 7"):
        open_index(path, tmp_path / "other", strict=True)
    assert [p.name for p in (tmp_path / "other").iterdir() if p.suffix != ".lock"] == []
    index = open_index(path, tmp_path / "other")
    assert len(index) == 1 and index.folder.parent == tmp_path / "other"
    with pytest.raises(BadRecord, match="record 1"):  # the index is there, and strict all the same
        open_index(path, tmp_path / "other", strict=True)


@pytest.mark.parametrize("cut", [20, 60, 100, -3, -2])
def test_a_json_that_breaks_off_is_an_error(tmp_path, cut):
    path = write_set(tmp_path, [{"img_name": f"{i}.png", "caption": "c" * 9} for i in range(4)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is no complete JSON"):
        open_index(path)


def test_two_jsons_in_one_file_are_refused(tmp_path):
    one = write_set(tmp_path, [{"img_name": "a.png"}])
    whole = one.read_bytes()
    for rest in (whole, b"]", b"\0", b"\n{"):
        one.write_bytes(whole + rest)
        with pytest.raises(ValueError, match="data.json goes on with .* after the end of its JSON"):
            open_index(one)
    one.write_bytes(whole[:-1] + b', "data_list": []}')
    with pytest.raises(ValueError, match="'data_list' twice"):
        open_index(one)
    one.write_bytes(b"\xef\xbb\xbf" + whole + b" \r\n")  # a byte order mark, and space at the end
    assert open_index(one)[0].img_name == "a.png"


def test_records_larger_than_the_window_are_read(tmp_path):
    captions = ["a" * 10, "b" * 3_000_000, "c" * 2_000_001, "字" * 700_000, "d"]
    records = [{"img_name": "a.png", "caption": caption} for caption in captions]
    path = tmp_path / "data.json"
    content = {"data_list": records, "data_root": "at the end"}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    index = open_index(path)
    assert [index[i].caption for i in range(5)] == captions and index.about.data_root == "at the end"


def test_index_gives_back_what_went_in(published):
    index = open_index(published)
    raw = json.loads(str(REFERENCE["json"]))["data_list"]
    assert [index[i].caption for i in range(3)] == [record.get("caption", "") for record in raw]
    assert index[0].annotations == (
        Annotation((10, 10, 100, 20, 98, 44, 8, 34), "Hello", "Latin", True, (255, 10, 20)),
        Annotation((5, 100, 60, 100, 60, 120, 5, 120), "", "Latin", False, None),
        Annotation((100, 50, 122, 50, 122, 120, 100, 120), "tall one", "Latin", True, None),
    )
    assert index[1] == Record(1, "im1.png", "no text here", 0.9, ())


def test_positions_jitter_in_upstreams_shares():
    from anytext_lcm.data.masks import jitter_position

    large, small = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    large[40:61, 20:81], small[40:44, 20:81] = 1, 1  # small: a side under 20/512 of the picture
    quads = {21: ((20, 40), (80, 40), (80, 60), (20, 60)), 4: ((20, 40), (80, 40), (80, 43), (20, 43))}
    grown = {"same": (0, 0), "+1": (1, 1), "-1": (-1, -1), "+2": (2, 2), "-2": (-2, -2)}
    for draw, kind, kind_small in (
        (0.69, "same", "same"),
        (0.75, "+1", "+1"),
        (0.85, "-1", "+2"),
        (0.92, "+2", "+2"),
        (0.97, "-2", "same"),
    ):
        for mask, side, expected in ((large, 21, kind), (small, 4, kind_small)):
            by = grown[expected][0]
            got = jitter_position(mask, np.array(quads[side]), draw)
            assert got.sum() == (side + 2 * by) * (61 + 2 * by), (draw, side)
            # a second way: distance in the maximum norm
            near = cv2.distanceTransform(1 - mask, cv2.DIST_C, 3) <= by
            if by >= 0:
                np.testing.assert_array_equal(got, near.astype(np.uint8))
