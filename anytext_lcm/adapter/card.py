"""The model card of an exported adapter: `card.md`, filled in."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from anytext_lcm import __version__
from anytext_lcm.adapter.choices import LAYOUTS, read_made_for
from anytext_lcm.adapter.lora import Adapter
from anytext_lcm.adapter.stored import read_adapter, training_header
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import printable
from anytext_lcm.lcm.schedule import ddim_timesteps, lcm_timesteps
from anytext_lcm.model.anytext2 import AnyText2

REPORT, CARD = "export.json", "README.md"
LIBRARIES = ("peft", "diffusers")  # layouts that a hub knows as a library
TEMPLATE = Path(__file__).with_name("card.md")
USES = {layout: Path(__file__).with_name("use") / f"{layout}.md" for layout in LAYOUTS}
UPSTREAM_SCRIPT = Path(__file__).with_name("use") / "upstream_lcm.txt"
"""A program of 40 lines that draws with a merged file in AnyText2's own code, by LCM's sampler."""


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """What an adapter's files say about it: rank, alpha, number of layers and parameters, and under "training" the
    settings that this package writes into the header. Raises FileNotFoundError or ValueError.
    """
    config, state = read_adapter(folder)
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "layers": sum(key.endswith(".lora_A.weight") for key in state),
        "parameters": sum(value.numel() for value in state.values()),
        "training": training_header(folder),
    }


def adapter_size(model: AnyText2) -> dict[str, Any]:
    """Rank, alpha, layers and parameters of the attached adapter. A mixture's differ from those of its parts."""
    adapter = Adapter.of(model)
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "layers": len(adapter.layers),
        "parameters": sum(value.numel() for value in adapter.state().values()),
    }


def model_card(
    metadata: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    licence: str = "apache-2.0",
    base_model: str | None = None,
    network: str = "",
    layout: str = "peft",
    file: str = "",
    left_out: str = "",
) -> str:
    """The README.md of an export: what it belongs to, how it was made and measured, and in which tools it works how.

    metadata: of `describe_adapter`. report: of `python -m anytext_lcm.evaluate`. base_model: the teacher's name on a
    hub. network: the yaml. layout: one of LAYOUTS. file: name of the exported file. left_out: a sentence about layers
    that the layout lacks. Raises ValueError for a report of another form.
    """
    rows = facts(metadata, base_model or network)
    leading = ddim_timesteps(4, spacing="leading").tolist()
    use = Template(USES[layout].read_text(encoding="utf-8")).substitute(
        four=", ".join(map(str, lcm_timesteps(4).tolist())),
        leading=", ".join(map(str, leading)),
        first_leading=leading[0],
        file=file,
        left_out=left_out or "Nothing of the adapter is left out.",
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        use=use.strip(),
        what="The network with its adapter merged into the weights" if layout == "merged" else "A LoRA adapter",
        library=f"library_name: {layout}\n" if layout in LIBRARIES else "",
        licence=_yaml(licence),
        base=f"base_model: {_yaml(base_model)}\nbase_model_relation: adapter\n" if base_model else "",
        facts=text_table(("", ""), rows.items(), markdown=True),
        measured=_measured(report),
        version=__version__,
    )


def _yaml(text: str) -> str:
    """Text as a quoted YAML string on one line."""
    return json.dumps(printable(text), ensure_ascii=False)


def facts(metadata: Mapping[str, Any], base: str = "") -> dict[str, Any]:
    """Rows of the card's first table, by name; what metadata (of `describe_adapter`) does not know is left out.

    base: name of the network, by default the one that the training noted.
    """
    training = metadata["training"]
    scale, negative = training.get("guidance_scale"), training.get("negative_prompt")
    data = training.get("data_list") or ("drawn by this package" if training.get("use_mock_dataset") else None)
    batch, accumulation = training.get("train_batch_size"), training.get("gradient_accumulation_steps")
    rows = {
        "Base": base or training.get("network"),
        "Guidance built in": None if scale is None else f"{scale} (w = {scale - 1:g} in the LCM paper's form)",
        "Negative prompt built in": None if negative is None else repr(negative),
        "Objective": _objective(training),
        "Made for": _sampling(training),
        "Training steps": training.get("step"),
        "Learning rate": training.get("learning_rate"),
        "Pictures per process and step, accumulation": None if batch is None else f"{batch}, {accumulation}",
        "Data": ", ".join(map(str, data)) if isinstance(data, list) else data,
        "Rank, alpha": f"{metadata['rank']}, {metadata['alpha']:g}",
        "Adapted layers": f"{metadata['layers']} ({metadata['parameters'] / 1e6:.2f} M parameters)",
        "Timesteps": "a grid of 50, " + "; ".join(f"{n} steps at {lcm_timesteps(n).tolist()}" for n in (2, 4)),
        "Mixed from": ", ".join("{scale:g} x {name}".format(**part) for part in metadata.get("mixed_from", ())),
        "Base weights, SHA-256": metadata.get("base_sha256"),
    }
    return {name: value for name, value in rows.items() if value not in (None, "")}


def _objective(training: Mapping[str, Any]) -> str | None:
    """The objective, with its phases and the weight of text where they were asked for."""
    words = training.get("objective")
    if words is not None and training.get("phases") is not None:
        words += f", phases {training['phases']}"
    if words is not None and training.get("text_factor") not in (None, 1):
        words += f", text counted {training['text_factor']:g} times"
    return words


def _sampling(training: Mapping[str, Any]) -> str | None:
    """The sampling that the adapter was made for; None where the header names no objective."""
    if training.get("objective") is None:
        return None
    suits = read_made_for(training)
    return f"`--sampler {suits.samplers[0]}`, {suits.steps[0]} to {suits.steps[1]} steps"


def _measured(report: Mapping[str, Any] | None) -> str:
    """A sentence and a table of the student's methods. Raises ValueError for a report of another form."""
    if report is None:
        return "Not measured. `python -m anytext_lcm.evaluate --adapter .` does it, and `--report` puts it here."

    def interval(found: Mapping[str, float] | None) -> str:
        return "-" if found is None else "{value:.3f} [{low:.2f}, {high:.2f}]".format(**found)

    try:
        panel, reference = report["panel"], report.get("reference")
        rows = [
            [
                name,
                row["evaluations"],
                *(interval(row.get(key)) for key in ("accuracy", "retention")),
                f"{row['ned']['value']:.3f}",
            ]
            for name, row in report["methods"].items()
            if name == reference or name.startswith("student")
        ]
        sentence = (
            f"{panel['prompts']} prompts with {panel['lines']} lines, the same noise for all methods, 95 % intervals "
            "over prompts:"
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"The report has another form than `evaluate` writes ({error!r}).") from error
    head = ["method", "UNet evaluations", "lines right", "retention", "NED"]
    return sentence + "\n\n" + text_table(head, rows, markdown=True, align="lr")
