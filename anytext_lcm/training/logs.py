"""What a run logged, read back from its event files. Imports TensorBoard."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_curves(output_dir: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every number of a run by its tag: updates, rising, and values. What a killed launch logged after its last
    checkpoint is replaced by what the resumed one logged. Empty before anything is written.
    """
    points: dict[str, dict[int, float]] = {}
    # A folder at a time: that the later file makes steps of the earlier one void, is seen where both are read in a row.
    for folder in sorted({file.parent for file in (Path(output_dir) / "logs").rglob("events.out.tfevents.*")}):
        log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in log.Tags()["scalars"]:
            points.setdefault(tag, {}).update((event.step, event.value) for event in log.Scalars(tag))
    return {tag: (sorted(found), [found[step] for step in sorted(found)]) for tag, found in points.items()}
