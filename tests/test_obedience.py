"""What a panel's real pictures obey, and what spoilt ones do not."""

import numpy as np
import pytest

from anytext_lcm.judging import colours, obedience, tables
from anytext_lcm.judging.judge import PanelJudge, real_pictures
from anytext_lcm.judging.panel import Panel


@pytest.fixture(scope="module")
def panel():
    return Panel.build(prompts=24, edit_share=0.25, hint_share=0.5)


def judged(panel, images):
    masks = [colours.text_mask(polygons, images.shape[1:3]) for polygons in panel.polygons]
    return {name: found["value"] for name, found in obedience.measures(panel, images, masks).items()}


def test_real_pictures_obey_and_others_do_not(panel):
    real = judged(panel, panel.images)
    assert real["kept_outside"] == obedience.KEPT_MOST  # equal pictures
    assert min(real[name] for name in ("objects_obeyed", "ink_obeyed", "background_obeyed")) >= 0.9
    assert real["fonts_obeyed"] >= 0.5
    turned = panel.images[..., ::-1]  # red becomes blue, and nothing moves
    assert all(judged(panel, turned)[name] < real[name] - 0.2 for name in ("objects_obeyed", "ink_obeyed"))
    flat = np.full_like(panel.images, 127)
    assert judged(panel, flat)["objects_obeyed"] == 0 and judged(panel, flat)["kept_outside"] < 30
    assert judged(panel, flat)["fonts_obeyed"] < real["fonts_obeyed"]


def test_only_what_a_prompt_says_counts(panel):
    asked = [item["meta"] for item in panel.items]
    edited = sum(meta["mode"] == "edit" for meta in asked)
    masks = [colours.text_mask(polygons, (128, 128)) for polygons in panel.polygons]
    found = obedience.measures(panel, panel.images, masks)
    plain = [m for m in asked if m["ground"] == "plain" and m["ground_in_caption"] and m["mode"] == "generate"]
    things = [m for m in asked if m["objects"] and m["mode"] == "generate"]
    assert 0 < edited < len(panel) and found["kept_outside"]["n"] == edited
    assert found["background_obeyed"]["n"] == len(plain) and found["objects_obeyed"]["n"] == len(things)
    assert found["ink_obeyed"]["n"] == sum(meta["color_given"] for meta in asked)


def test_a_panel_without_editing_and_hints_has_no_such_measures():
    panel = Panel.build(prompts=12)
    found = judged(panel, panel.images)
    assert {"objects_obeyed", "ink_obeyed"} <= set(found) and not {"kept_outside", "fonts_obeyed"} & set(found)


def test_the_real_pictures_are_edited_as_often_as_the_panel_s():
    pictures = real_pictures(6, edit_share=0.25)
    assert pictures.shape == (6, 128, 128, 3) and not np.array_equal(pictures, real_pictures(6))
    for wrong in ({"edit_share": 2.0}, {"hint_share": -0.1}):
        with pytest.raises(ValueError, match="edit_share|hint_share"):
            Panel.build(prompts=2, **wrong)


def test_the_tables_have_a_column_for_each_measure(panel, monkeypatch):
    judge = PanelJudge(panel)
    row = obedience.measures(panel, panel.images, judge.masks) | {"sharpness": {"gradient_energy_to_real": 1.0}}
    report = {"reference": None, "panel": {}, "methods": {"real": row}}
    head = tables.likeness(report).splitlines()[0]
    assert "background obeyed" in head and "kept, dB" in head and "objects" not in head
    costs = {"core_seconds_a_picture": {}, "evaluations": 0, "distribution": None}
    costs |= {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in ("accuracy", "ned")}
    report |= {"prepare_seconds_a_picture": {"cores": 0.0}, "hardware": {"device": "cpu"}}
    report["methods"]["real"] |= costs
    assert "| objects obeyed | colour by number obeyed |" in tables.cost_and_reading(report).splitlines()[0]
    del row["objects_obeyed"], row["kept_outside"]
    assert "objects" not in tables.cost_and_reading(report).splitlines()[0]
    assert "kept" not in tables.likeness(report).splitlines()[0]
