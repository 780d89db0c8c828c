"""Command: write a trained adapter in the formats others read. `python -m anytext_lcm.export --adapter DIR`

Four layouts: PEFT's folder, the whole network with the adapter merged in (upstream's checkpoint), and the UNet's part
as a kohya and as a diffusers LoRA file. What the last two cannot hold, WriteNet and AttnX, is said in the report. Each
gets a card that says with which sampler, timesteps, guidance and scale it works in which tool, the merged file also a
program for AnyText2's own code. Every file is read back and compared.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anytext_lcm.adapter.choices import LAYOUTS, PRECISIONS
from anytext_lcm.command import add_network, named, new_parser, run
from anytext_lcm.files import atomic_folder, read_json
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "export", "Writes an adapter as PEFT folder, merged checkpoint, kohya and diffusers LoRA; reads each back."
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
    add(
        "--output",
        type=named,
        default="outputs/export",
        help="folder for all layouts and export.json (default: %(default)s)",
    )
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
    add_network(parser, str(EMBEDDED_CONFIG))
    return parser


def work(args: argparse.Namespace) -> str:
    """Check what can be checked before the weights are loaded, then write everything or nothing."""
    from anytext_lcm.adapter.card import REPORT, adapter_size, describe_adapter, model_card
    from anytext_lcm.adapter.layouts import ExportOptions, export, sha256
    from anytext_lcm.adapter.lora import resolve_adapter
    from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.model.loading import load_chosen

    defaults_for(args.config)  # a wrong yaml shows here, before the files of the adapter are read
    adapter = resolve_adapter(args.adapter)
    if adapter is None:
        raise ValueError("There is nothing to export without an adapter; name one.")
    mixed = map(WeightedAdapter.parse, args.mix or ())
    adapters = [WeightedAdapter(adapter, args.adapter_scale), *mixed]
    require_network(args.config, args.ckpt, "--ckpt", [adapter])
    about = describe_adapter(adapter)
    if len(adapters) > 1 or args.adapter_scale != 1.0:
        about["mixed_from"] = [{"name": found.source.name, "scale": found.scale} for found in adapters]
    if args.ckpt is not None and Path(args.ckpt).is_file():
        about["base_sha256"] = sha256(args.ckpt)
    evaluated = read_report(args.report)
    model_card(about, evaluated)  # a report of another form shows here, before any weight is loaded
    with atomic_folder(args.output, mark=REPORT) as folder:
        use_available_cores()
        model = load_adapters(load_chosen(args.config, args.ckpt, args.device, "fp32"), adapters)
        about |= adapter_size(model)
        report = export(
            model,
            folder,
            partial(model_card, about, evaluated, args.license, args.base_model, Path(args.config).name),
            about["training"] | {k: v for k, v in about.items() if k in ("mixed_from", "base_sha256")},
            ExportOptions(
                args.layouts, args.precision, f".{args.checkpoint_format}", args.base_model, check=not args.no_check
            ),
        )
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return describe_files(Path(args.output), report)


def read_report(path: str | None) -> dict[str, Any] | None:
    """The JSON of an evaluation, None for none. Raises ValueError when it cannot be read."""
    if path is None:
        return None
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"The report {path} cannot be read ({error}).") from error


def describe_files(output: Path, report: Mapping[str, Any]) -> str:
    """A line for each file with its error, and what the UNet's files leave out."""
    lines = []
    for layout, name in report["files"].items():
        error = report["errors"].get(layout)
        lines.append(f"{output / name}" + ("" if error is None else f"  read back, largest relative error {error:.1e}"))
    if report["left_out"] and report["left_out"]["note"]:
        lines.append(report["left_out"]["note"])
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
