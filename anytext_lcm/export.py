"""Command: write a trained adapter in the formats others read. `python -m anytext_lcm.export --help`.

Four layouts: PEFT's folder with a model card, the whole network with the adapter merged in (upstream's checkpoint),
and the UNet's part as a kohya and as a diffusers LoRA file. What the last two cannot hold, WriteNet and AttnX, is said
in the report. Every file is read back and compared.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from anytext_lcm import __version__
from anytext_lcm.exchange import (
    Part,
    describe_rest,
    load_parts,
    parse_part,
    read_lora_file,
    split_layers,
    update_error,
    write_diffusers,
    write_kohya,
    write_merged,
)
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_layers,
    adapter_state,
    load_adapter,
    merge,
    read_adapter,
    save_adapter,
)
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import whole_directory, whole_file
from anytext_lcm.pipeline import EMBEDDED_CONFIG, load_chosen, resolve_adapter, use_available_cores

LAYOUTS = ("peft", "merged", "kohya", "diffusers")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
REPORT, CARD = "export.json", "README.md"

# -- PEFT folder with a model card ----------------------------------------------------------------------


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


def write_peft(
    model: AnyText2, folder: str | Path, card: str, about: Mapping[str, Any] = {}, base_model: str | None = None
) -> Path:
    """The folder that PEFT reads, with its model card. Returns it. Raises ValueError when there is no adapter."""
    folder = save_adapter(model, folder, {"anytext_lcm": json.dumps(dict(about), sort_keys=True)})
    if base_model:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_model
        with whole_file(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with whole_file(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder


# -- checking -------------------------------------------------------------------------------------------


@torch.no_grad()
def probe(model: AnyText2, seed: int = 0) -> list[Tensor]:
    """What both networks answer to random 64 px inputs: WriteNet's residuals and the predicted noise, fp32.

    Two models that answer the same to these have the same weights and adapters, for all that matters here.
    """
    generator = torch.Generator().manual_seed(seed)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k
    width, channels = attention.in_features, model.latent_channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    context, text = draw(2, 77, width), draw(2, 77, width)
    glyphs = (draw(2, 1, 64, 64) > 0.8).to(model.dtype)
    latents, masked = draw(2, channels, 8, 8), draw(2, channels, 8, 8)
    residuals = model.control_model(glyphs, glyphs, masked, text)
    timesteps = torch.tensor([259, 999], device=model.device)
    eps = model.model.diffusion_model(latents, timesteps, context, control=residuals)
    return [x.float().cpu() for x in (*residuals, eps)]


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference of two probes, over the largest number in them."""
    largest = max(float(x.abs().max()) for x in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / max(largest, 1e-12)


# -- command --------------------------------------------------------------------------------------------


def export(
    model: AnyText2,
    folder: Path,
    layouts: Sequence[str],
    card: str,
    about: Mapping[str, Any] = {},
    precision: str = "fp32",
    ending: str = ".safetensors",
    base_model: str | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Writes the layouts into a folder, reads each back, and returns the report that goes into export.json.

    With a check the model ends up merged: its weights are overwritten by those of the merged file, so that the file
    itself is what is compared. Errors are relative, of the answers to `probe` or, for UNet files, of the updates.
    """
    dtype, files, errors = PRECISIONS[precision], {}, {}
    reference = probe(model) if check else []
    _, rest = split_layers(model)
    if "peft" in layouts:  # always fp32: it is what training goes on from
        files["peft"] = write_peft(model, folder / "peft", card, about, base_model)
        if check:
            errors["peft"] = distance(reference, probe(load_adapter(model, files["peft"])))
    for layout, write, name in (
        ("kohya", write_kohya, "kohya/anytext_lcm_unet.safetensors"),
        ("diffusers", write_diffusers, "diffusers/pytorch_lora_weights.safetensors"),
    ):
        if layout in layouts:
            files[layout] = write(model, folder / name, about, dtype)
            if check:
                errors[layout] = update_error(model, read_lora_file(model, files[layout]))
    if "merged" in layouts:
        files["merged"] = write_merged(model, folder / f"merged/anytext2_lcm{ending}", about, dtype)
        if check:
            merge(model).load_checkpoint(files["merged"])
            errors["merged"] = distance(reference, probe(model))
    unet_only = [layout for layout in ("kohya", "diffusers") if layout in layouts]
    return {
        "anytext_lcm": __version__,
        "about": dict(about),
        "precision": precision,
        "files": {layout: str(path.relative_to(folder)) for layout, path in files.items()},
        "errors": errors,
        "left_out": {"layouts": unet_only, "layers": rest, "note": describe_rest(rest)} if unet_only else None,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.export",
        description="Writes an adapter as PEFT folder, merged checkpoint, kohya and diffusers LoRA; reads each back.",
    )
    add = parser.add_argument
    add("--adapter", default="shipped", metavar="DIR|shipped", help="default: %(default)s")
    add("--adapter_scale", type=float, default=1.0, help="weight of the adapter (default: %(default)s)")
    add(
        "--mix",
        action="append",
        metavar="PATH[@SCALE]",
        help="another adapter to add: a PEFT folder, a kohya or a diffusers file; may be repeated",
    )
    add("--output", default="outputs/export", help="folder for all layouts and export.json (default: %(default)s)")
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all")
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="of the merged, kohya and diffusers files (default: %(default)s)",
    )
    add(
        "--checkpoint_format",
        choices=("safetensors", "ckpt"),
        default="safetensors",
        help="of the merged file (default: %(default)s)",
    )
    add("--report", help="report.json of an evaluation, for the model card")
    add("--license", default="apache-2.0", help="for the model card (default: %(default)s)")
    add("--base_model", help="name of the teacher on a hub, for the model card and adapter_config.json")
    add("--no_check", action="store_true", help="do not read the files back, which costs one network call each")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _read_report(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The report {path} cannot be read ({error}).") from error


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Checks what can be checked before the weights are loaded, then writes everything or nothing."""
    adapter = resolve_adapter(args.adapter)
    if adapter is None:
        raise ValueError("There is nothing to export without an adapter; name one.")
    parts = [Part(adapter, args.adapter_scale), *(parse_part(text) for text in args.mix or ())]
    about = describe_adapter(adapter)
    if len(parts) > 1 or args.adapter_scale != 1.0:
        about["mixed_from"] = [{"name": part.source.name, "scale": part.scale} for part in parts]
    if args.ckpt is not None and Path(args.ckpt).is_file():
        about["base_sha256"] = _sha256(args.ckpt)
    evaluated = _read_report(args.report)
    model_card(about, evaluated)  # a report of another form shows here, before any weight is loaded
    output = Path(args.output)
    with whole_directory(output, mark=REPORT) as folder:
        use_available_cores()
        model = load_parts(load_chosen(args.config, args.ckpt, args.device), parts)
        about |= adapter_size(model)
        card = model_card(about, evaluated, args.license, args.base_model, Path(args.config).name)
        written = about["training"] | {k: v for k, v in about.items() if k in ("mixed_from", "base_sha256")}
        report = export(
            model,
            folder,
            args.layouts,
            card,
            written,
            args.precision,
            f".{args.checkpoint_format}",
            args.base_model,
            not args.no_check,
        )
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return output, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        output, report = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for layout, name in report["files"].items():
        error = report["errors"].get(layout)
        print(f"{output / name}" + ("" if error is None else f"  read back, largest relative error {error:.1e}"))
    if report["left_out"] and report["left_out"]["note"]:
        print(report["left_out"]["note"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
