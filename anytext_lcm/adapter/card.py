"""
The model card of an exported adapter.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from anytext_lcm import __version__
from anytext_lcm.adapter.lora import WEIGHTS_FILE, adapter_layers, adapter_state, read_adapter
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.model.anytext2 import AnyText2

REPORT, CARD = "export.json", "README.md"


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """What an adapter's files say about themselves: rank, alpha, number of layers, and the training settings that this
    package writes into the header. Raises FileNotFoundError or ValueError.
    """
    config, state = read_adapter(folder)
    with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
        header = file.metadata() or {}
    try:
        training = json.loads(header.get("anytext_lcm", "{}"))
    except ValueError:
        training = {}
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "layers": sum(key.endswith(".lora_A.weight") for key in state),
        "parameters": sum(value.numel() for value in state.values()),
        "training": training if isinstance(training, dict) else {},
    }


def adapter_size(model: AnyText2) -> dict[str, Any]:
    """Rank, alpha, layers and parameters of what is attached: a mixture's are not those of its parts."""
    layers = adapter_layers(model)
    config = next(iter(model.peft_config.values()))
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "layers": len(layers),
        "parameters": sum(value.numel() for value in adapter_state(model).values()),
    }


def _metrics(report: Mapping[str, Any] | None) -> list[str]:
    """Rows of the card's table: the reference and every method of the student."""
    if report is None:
        return ["Not measured. `python -m anytext_lcm.evaluate --adapter .` does it, and `--report` puts it here."]
    try:
        panel, reference = report["panel"], report.get("reference")
        rows = ["| method | UNet evaluations | lines right | retention | NED |", "|---|---|---|---|---|"]
        for name, row in report["methods"].items():
            if name != reference and not name.startswith("student"):
                continue
            cells = [name, str(row["evaluations"])]
            for key in ("accuracy", "retention"):
                found = row.get(key)
                cells.append("-" if found is None else "{value:.3f} [{low:.2f}, {high:.2f}]".format(**found))
            rows.append("| " + " | ".join([*cells, f"{row['ned']['value']:.3f}"]) + " |")
        return [
            f"{panel['prompts']} prompts with {panel['lines']} lines, the same noise for all methods, 95 % intervals "
            "over prompts:",
            "",
            *rows,
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"The report has another form than `evaluate` writes ({error!r} is missing).") from error


def model_card(
    about: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    licence: str = "apache-2.0",
    base_model: str | None = None,
    network: str = "",
) -> str:
    """The README.md of an adapter: what it belongs to, how it was made and measured, and how it is used.

    about: of `describe_adapter`. report: of `python -m anytext_lcm.evaluate`. base_model: its name on a hub. network:
    the yaml. Raises ValueError for a report of another form.
    """
    training = about["training"]
    head = {
        "license": licence,
        "library_name": "peft",
        "pipeline_tag": "text-to-image",
        **({"base_model": base_model, "base_model_relation": "adapter"} if base_model else {}),
    }
    scale = training.get("guidance_scale")
    data = training.get("data_list") or ("drawn by this package" if training.get("use_mock_dataset") else None)
    batch = [training.get(k) for k in ("train_batch_size", "gradient_accumulation_steps", "num_processes")]
    facts = {
        "Base": base_model or network or training.get("network"),
        "Guidance built in": None if scale is None else f"{scale} (w = {scale - 1:g} in the LCM paper's form)",
        "Negative prompt built in": repr(training["negative_prompt"]) if "negative_prompt" in training else None,
        "Objective": training.get("objective"),
        "Training steps": training.get("step"),
        "Learning rate": training.get("learning_rate"),
        "Pictures a process and step, accumulation": None if None in batch[:2] else f"{batch[0]}, {batch[1]}",
        "Data": ", ".join(map(str, data)) if isinstance(data, list) else data,
        "Rank, alpha": f"{about['rank']}, {about['alpha']:g}",
        "Adapted layers": f"{about['layers']} ({about['parameters'] / 1e6:.2f} M parameters)",
        "Timesteps": "a grid of 50, " + "; ".join(f"{n} steps at {lcm_timesteps(n).tolist()}" for n in (2, 4)),
        "Mixed from": ", ".join("{scale:g} x {name}".format(**part) for part in about.get("mixed_from", ())) or None,
        "Base weights, SHA-256": about.get("base_sha256"),
    }
    lines = ["---", *(f"{key}: {value}" for key, value in head.items())]
    lines += ["tags:", *(f"- {tag}" for tag in ("lora", "lcm", "anytext2", "text-rendering")), "---", ""]
    lines += [
        "# Few-step adapter for AnyText2",
        "",
        "A LoRA adapter, trained by latent consistency distillation, that draws in a few steps and without guidance "
        "what the teacher draws in many guided steps.",
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items() if value is not None),
        "",
        "## How well it reads",
        "",
        *_metrics(report),
        "",
        "## Use",
        "",
        "```python",
        "from anytext_lcm.lora import load_adapter",
        "from anytext_lcm.pipeline import load_model",
        "",
        'model = load_adapter(load_model("anytext2.yaml", "anytext2.ckpt"), "this/folder")',
        "```",
        "",
        "Or `python -m anytext_lcm.sample --adapter this/folder --steps 4 ...`. Four to eight steps, guidance 1: the "
        "guidance is built in, and more of it on top costs twice the time and overexposes. PEFT's own "
        "`PeftModel.from_pretrained` reads the folder too.",
        "",
        "## Limits",
        "",
        "It fits the network it was trained for and no other. What the teacher cannot write, small glyphs above all, "
        "the adapter cannot either.",
        "",
        f"Written by anytext_lcm {__version__}.",
        "",
    ]
    return "\n".join(lines)
