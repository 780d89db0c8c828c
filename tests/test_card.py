"""The card of the embedded teacher says what lies beside it."""

import math
import re

import documents
import readme_parts
from safetensors import safe_open

from anytext_lcm.adapter.stored import training_header
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.training.recipes import DEFAULTS, SHIPPED, SHIPPED_STEPS

ASSETS = readme_parts.CARD.parent
TEXT = readme_parts.CARD.read_text(encoding="utf-8")


def cells(name: str) -> list[str]:
    """The cells of the first row of a table that begins with this name."""
    row = re.search(rf"^\| `?{re.escape(name)}`? \|.*$", TEXT, re.M)[0]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_files_have_the_sizes_and_weights_that_the_card_names():
    def size(path):
        return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))

    assert cells("teacher.safetensors")[2] == f"{size(ASSETS / 'teacher.safetensors') / 1e6:.1f} MB"
    assert cells("adapter/")[2] == f"{size(ASSETS / 'adapter') / 1e6:.1f} MB"
    assert cells("tokenizer/")[2] == f"{size(ASSETS / 'tokenizer') / 1e3:.0f} kB"
    with safe_open(ASSETS / "teacher.safetensors", "pt") as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    assert f" {weights / 1e6:.1f} million weights" in cells("teacher.safetensors")[1]


def test_the_adapter_is_the_one_that_the_card_describes():
    header = training_header(ASSETS / "adapter")
    _, how, steps = cells("adapter")
    assert steps == str(header["step"]) and f"rank {header['lora_rank']} " in cells("adapter/")[1]
    assert (header["objective"], header["phases"], header["loss"]) == ("pcm", None, "l2")
    assert "phased consistency in four phases, L2," in how
    assert (header["step"], header["learning_rate"]) == (SHIPPED_STEPS, SHIPPED["learning_rate"])
    assert f"guidance {header['guidance_scale']:g}, {DEFAULTS.batch} pictures" in how
    [rate] = re.findall(r"learning rate ([\de.-]+)", how)
    assert float(rate) == header["learning_rate"]
    assert f"two noises each, guidance {header['guidance_scale']:g}." in " ".join(
        documents.prose(readme_parts.CARD).split()
    )
    first, *middle, last = lcm_timesteps(4).tolist()
    assert f"timesteps are {first}, {', '.join(map(str, middle))} and {last}." in TEXT


def test_the_lines_that_load_it_load_it():
    [block] = [token.content for token in documents.tokens(readme_parts.CARD) if token.info == "python"]
    names = {}
    exec(block, names)
    assert any(name.endswith("lora_A.default.weight") for name in names["model"].state_dict())
