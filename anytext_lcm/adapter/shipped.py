"""The adapters that come with the package, and which of them suits how many steps."""

from collections.abc import Mapping
from pathlib import Path

from anytext_lcm.adapter.choices import MadeFor, read_made_for
from anytext_lcm.adapter.stored import CONFIG_FILE, training_header

USUAL_STEPS = 4  # of the student, where nobody says how many


def adapters_in(folder: Path) -> dict[Path, MadeFor]:
    """The adapters in folders of this folder, by the sampling they were made for: few steps first.

    Their names say nothing; the headers of their weights do. Raises FileNotFoundError when there is none, ValueError
    as `read_made_for`.
    """
    found = [file.parent for file in sorted(folder.glob(f"*/{CONFIG_FILE}"))]
    if not found:
        raise FileNotFoundError(f"There is no adapter in {folder}; make one with `python -m anytext_lcm.demo`.")
    suits = {path: read_made_for(training_header(path)) for path in found}
    return dict(sorted(suits.items(), key=lambda entry: entry[1].steps[::-1]))


def adapter_for(adapters: Mapping[Path, MadeFor], steps: int = USUAL_STEPS) -> Path:
    """The first of `adapters_in` made for so many steps or more, else the one made for the most."""
    return next((path for path, suits in adapters.items() if steps <= suits.steps[1]), [*adapters][-1])
