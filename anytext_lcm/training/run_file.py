"""`run.yaml` of a run's folder: all settings as they were used, to be read by `train --run FILE`.

How a run was continued (`resume_from_checkpoint`, `resume_changed`) is no setting of the run and is left out. Paths are
as they were given, relative to the folder the command ran in.
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from anytext_lcm.files import atomic_file
from anytext_lcm.training.settings import TrainSettings, setting_kinds

RUN_FILE = "run.yaml"
LEFT_OUT = ("resume_from_checkpoint", "resume_changed")
HEAD = "# Settings of this run, as used: python -m anytext_lcm.train --run THIS_FILE. Flags win over the file.\n"


def write_run(settings: TrainSettings) -> Path:
    """Write the settings to `run.yaml` in the run's folder, whole or not at all. Returns the file."""
    path = Path(settings.output_dir) / RUN_FILE
    values = {found.name: getattr(settings, found.name) for found in fields(settings) if found.name not in LEFT_OUT}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    with atomic_file(path) as temporary:
        text = HEAD + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")
    return path


def read_run(path: str | Path) -> dict[str, Any]:
    """Read settings from a file in `run.yaml`'s form; it may have some of them only.

    Raises FileNotFoundError, or ValueError naming the file and the key for what is unknown or of another type. Bounds
    are checked by TrainSettings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--run {path} does not exist; name a {RUN_FILE} that a training wrote.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--run {path} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"--run {path} must map names of settings to values.")
    kinds = {found.name: (found, kind) for found, kind in setting_kinds()}
    if unknown := sorted(str(name) for name in values if name not in kinds):
        raise ValueError(f"--run {path} has the unknown settings {', '.join(unknown)}; train --help lists all.")
    return {name: _typed(path, *kinds[name], value) for name, value in values.items()}


def _typed(path: Path, known: Any, kind: type, value: Any) -> Any:
    """The value as its field has it. Raises ValueError for another type."""
    if value is None and known.default is None:
        return None
    if kind is float and isinstance(value, str):  # YAML takes 1e-4 for a text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    accepted = {float: int | float}.get(kind, kind)
    if kind is not tuple and isinstance(value, accepted) and isinstance(value, bool) == (kind is bool):
        return value
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", tuple: "a list of texts"}[kind]
    null = ", or null" if known.default is None and known.default is not MISSING else ""
    raise ValueError(f"--run {path}: {known.name} must be {words}{null}, not {value!r}.")
