"""Trains the family of few-step methods of notebook 06 from several seeds: `python notebooks/measure_family.py`.

It runs the notebook's own cells, those tagged "setup" and "family", once for each seed, and writes what they measured
to measured/family.json, which the notebook compares with its own run. A seed takes about a minute of one core.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anytext_lcm.files import atomic_file

HERE = Path(__file__).parent
NOTEBOOK, MEASURED = HERE / "06_beyond_lcm.ipynb", HERE / "measured" / "family.json"


def family_cells(seed: int, updates: int) -> list[str]:
    """Sources of the cells that train and measure the family, with this seed and number of updates."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if {"setup", "family"} & set(cell["metadata"].get("tags", ()))]
    first = r"^SEED, FAMILY_UPDATES = .*$"
    if sum(len(re.findall(first, source, re.M)) for source in sources) != 1:
        raise ValueError(f"{NOTEBOOK.name} must set SEED and FAMILY_UPDATES in one line of one cell tagged 'family'.")
    return [re.sub(first, f"SEED, FAMILY_UPDATES = {seed}, {updates}", source, flags=re.M) for source in sources]


def measure(seed: int, updates: int) -> dict[str, Any]:
    """Distances to the data and to the exact map, four step counts each, by method."""
    names: dict[str, Any] = {}
    for source in family_cells(seed, updates):
        exec(source, names)
    return {
        method: {what: [round(value, 4) for value in values] for what, values in row.items()}
        for method, row in names["measured"].items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report after each seed. Exit code 0, or 2 with one sentence on stderr for bad flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="trainings to run (default: 0 1 2)")
    parser.add_argument("--updates", type=int, default=800, help="updates of each training (default: 800)")
    options = parser.parse_args(arguments)
    if options.updates < 1:
        print(f"error: --updates must be 1 or more, not {options.updates}.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    report = {"updates": options.updates, "torch": torch.__version__.split("+")[0], "seeds": {}}
    if MEASURED.is_file():
        stored = json.loads(MEASURED.read_text(encoding="utf-8"))
        if stored["updates"] == options.updates:  # other seeds of the same training stay
            report["seeds"] = stored["seeds"]
    for seed in options.seeds:
        report["seeds"][str(seed)] = measure(seed, options.updates)
        report["seeds"] = dict(sorted(report["seeds"].items()))
        with atomic_file(MEASURED) as file:
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"seed {seed}: {MEASURED.name} written", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
