"""What a run logged, read back from its event files."""

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def _read(folder: Path) -> EventAccumulator:
    """All events of a folder. That a resumed run logs steps again is no anomaly, so TensorBoard does not warn of it."""
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    finally:
        logger.setLevel(level)


def read_curves(output_dir: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every number of a run by its tag: updates in ascending order, and values. Empty before anything is written.

    What a resumed launch logged replaces what the killed one logged after its last checkpoint.
    """
    points: dict[str, dict[int, float]] = {}
    # One folder at a time: a later file voids steps of an earlier one only where both are read in a row.
    for folder in sorted({file.parent for file in (Path(output_dir) / "logs").rglob("events.out.tfevents.*")}):
        log = _read(folder)
        for tag in log.Tags()["scalars"]:
            points.setdefault(tag, {}).update((event.step, event.value) for event in log.Scalars(tag))
    return {tag: (sorted(found), [found[step] for step in sorted(found)]) for tag, found in points.items()}


def read_pictures(output_dir: str | Path, tag: str) -> dict[int, np.ndarray]:
    """Sample pictures of a run, as `samples/student-4`: by update, (H, B W, 3) uint8, the B pictures side by side."""
    found: dict[int, np.ndarray] = {}
    for folder in sorted({file.parent for file in (Path(output_dir) / "logs").rglob("events.out.tfevents.*")}):
        log = _read(folder)
        for event in log.Images(tag) if tag in log.Tags()["images"] else ():
            found[event.step] = np.asarray(Image.open(BytesIO(event.encoded_image_string)).convert("RGB"))
    return dict(sorted(found.items()))
