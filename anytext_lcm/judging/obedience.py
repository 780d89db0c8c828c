"""Does a picture do what its prompt says: grounds, objects, colours of text, fonts, and what must not change?

Each measure counts the pictures and lines for which the prompt says something, and is left out where no prompt does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from anytext_lcm.data.fonts import covers
from anytext_lcm.data.layout import FONTS
from anytext_lcm.judging import colours, font, ink, kept, objects
from anytext_lcm.judging.intervals import bootstrap_mean

if TYPE_CHECKING:
    from anytext_lcm.judging.panel import Panel

KEPT_MOST = 60.0  # dB; equal pictures count as this


def measures(panel: Panel, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Shares 0..1 with intervals over prompts, by name; `kept_outside` is in dB.

    images (B, H, W, 3) uint8 drawn for the panel; masks (H, W) bool of each, where text is. `background_obeyed` and
    `text_colour_obeyed` are of colour names; `ink_obeyed` of colours given as numbers; `objects_obeyed`, `fonts_obeyed`
    and `kept_outside` of pictures with objects, hints and editing. Panels of one's own data have none of them.
    """
    if panel.source != "scenes":  # captions of one's own are not known to name objects and colours
        return {}
    found = {
        "background_obeyed": _background(panel, images, masks),
        "text_colour_obeyed": _named_text(panel, images),
        "objects_obeyed": _objects(panel, images, masks),
        "ink_obeyed": _ink(panel, images),
        "fonts_obeyed": _fonts(panel, images),
        "kept_outside": _kept(panel, images),
    }
    rows = {name: [(value, prompt) for value, prompt in pairs if not np.isnan(value)] for name, pairs in found.items()}
    return {
        name: asdict(bootstrap_mean(np.array([v for v, _ in pairs], float), np.array([p for _, p in pairs])))
        for name, pairs in rows.items()
        if pairs
    }


Values = list[tuple[float, int]]  # a value and its prompt


def _scenes(panel: Panel, images: Sequence[np.ndarray]) -> list[tuple[int, int, Any, Mapping[str, Any], Any]]:
    """(place, prompt, item, meta, picture) of each picture."""
    rows = zip(panel.prompt_of.tolist(), panel.items, images, strict=True)
    return [(place, prompt, item, item["meta"], image) for place, (prompt, item, image) in enumerate(rows)]


def _background(panel: Panel, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Values:
    """Of pictures drawn from nothing whose caption names the one colour of the ground."""
    return [
        (colours.background_obeyed(image, meta["tones"][0], masks[place]), prompt)
        for place, prompt, _, meta, image in _scenes(panel, images)
        if meta["ground"] == "plain" and meta["ground_in_caption"] and meta["mode"] == "generate"
    ]


def _named_text(panel: Panel, images: Sequence[np.ndarray]) -> Values:
    """Of lines whose colour the caption names; `_ink` judges those that have numbers alone."""
    values = []
    for _, prompt, item, meta, image in _scenes(panel, images):
        if not meta["color_in_caption"]:
            continue
        # A caption with two colours does not say which line has which.
        if not meta["color_given"] and len(set(meta["text_colors"])) > 1:
            continue
        for polygon, name in zip(item["condition_polygons"], meta["text_colors"], strict=True):
            values.append((colours.text_colour_obeyed(image, polygon, name), prompt))
    return values


def _objects(panel: Panel, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Values:
    """Of pictures drawn from nothing whose caption names objects, the share of these."""
    asked = [row for row in _scenes(panel, images) if row[3]["objects"] and row[3]["mode"] == "generate"]
    shares = objects.objects_obeyed(
        [image for *_, image in asked],
        [meta["objects"] for *_, meta, _ in asked],
        [meta["tones"] for *_, meta, _ in asked],
        [masks[place] for place, *_ in asked],
    )
    return [(share, row[1]) for share, row in zip(shares, asked, strict=True)]


def _ink(panel: Panel, images: Sequence[np.ndarray]) -> Values:
    """Of pictures whose colours are given as numbers, the share of lines in them."""
    asked = [row for row in _scenes(panel, images) if row[3]["color_given"]]
    shares = ink.ink_obeyed(
        [image for *_, image in asked],
        [item["condition_polygons"] for _, _, item, *_ in asked],
        [meta["text_rgb"] for *_, meta, _ in asked],
    )
    return [(share, row[1]) for share, row in zip(shares, asked, strict=True)]


def _fonts(panel: Panel, images: Sequence[np.ndarray]) -> Values:
    """Of pictures with a font hint and colours as numbers, the share of lines to which the wanted font fits best."""
    asked = [
        (place, prompt, item, meta, image)
        for place, prompt, item, meta, image in _scenes(panel, images)
        if meta["font_hinted"] and meta["color_given"] and all(covers(f, t) for f in FONTS for t in item["texts"])
    ]
    shares = font.fonts_obeyed(
        [image for *_, image in asked],
        [item["condition_polygons"] for _, _, item, *_ in asked],
        [item["texts"] for _, _, item, *_ in asked],
        [meta["text_rgb"] for *_, meta, _ in asked],
        [meta["fonts"] for *_, meta, _ in asked],
        list(FONTS),
    )
    return [(share, row[1]) for share, row in zip(shares, asked, strict=True)]


def _kept(panel: Panel, images: Sequence[np.ndarray]) -> Values:
    """Of pictures to edit, the signal-to-noise ratio outside the lines in dB."""
    asked = [row for row in _scenes(panel, images) if row[3]["mode"] == "edit"]
    originals = [panel.images[place] for place, *_ in asked]
    holes = [item["hint"][0] for _, _, item, *_ in asked]
    values = np.minimum(kept.kept_outside([image for *_, image in asked], originals, holes), KEPT_MOST)
    return [(value, row[1]) for value, row in zip(values, asked, strict=True)]
