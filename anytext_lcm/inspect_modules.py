"""Command: what an AnyText2 network is made of, and where an adapter goes. `python -m
anytext_lcm.inspect_modules --config models_yaml/anytext2_sd15.yaml [--ckpt FILE]`

Without a checkpoint the network is built on torch's meta device: shapes and names, no memory. Shown in
notebooks/01_inspect_modules.ipynb.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import named, new_parser, positive, run
from anytext_lcm.files import atomic_file, check_writable

if TYPE_CHECKING:
    from anytext_lcm.model.anytext2 import AnyText2


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "inspect_modules", "List every Linear and Conv2d of an AnyText2 network and write its LoRA targets."
    )
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="yaml of the network: anytext2_tiny.yaml is the embedded one, anytext2_sd15.yaml the full size",
    )
    add("--ckpt", help="weights to load and check as well; without them shapes are enough")
    add(
        "--output",
        type=named,
        default="target_modules_list.txt",
        help="gets one target per line (default: %(default)s)",
    )
    add("--lora_rank", type=positive, default=64, help="rank that the adapter is counted for (default: %(default)s)")
    add("--summary", action="store_true", help="leave out the list of single layers")
    return parser


def build(config: str | Path) -> "AnyText2":
    """The network of a yaml on the meta device: shapes and names alone. Raises FileNotFoundError or ValueError."""
    from anytext_lcm.model.anytext2 import AnyText2

    return AnyText2.from_config(config, device="meta")


def work(args: argparse.Namespace) -> str:
    """Count the layers, check the checkpoint, and write the names of the LoRA targets, sorted, one per line."""
    from anytext_lcm.adapter import census
    from anytext_lcm.adapter.targets import resolve_targets
    from anytext_lcm.model.checkpoint import check_fits, read_state_dict

    check_writable(args.output)
    model = build(args.config)
    layers = census.list_layers(model)
    sections = [] if args.summary else [census.layer_table(layers)]
    if args.ckpt:
        state = read_state_dict(args.ckpt)
        sections.append(str(census.compare_checkpoint(model, state)))
        check_fits(model, state, source=f"Checkpoint {args.ckpt}")
    names = resolve_targets(model, None)
    with atomic_file(args.output) as temporary:
        temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
    sections += [census.part_table(model, layers), census.role_table(layers), census.lora_table(layers, args.lora_rank)]
    return "\n\n".join([*sections, f"{len(names)} LoRA targets are in {args.output}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
