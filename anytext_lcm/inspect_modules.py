"""Command: what an AnyText2 network is made of, and where an adapter goes. `python -m
anytext_lcm.inspect_modules --config models_yaml/anytext2_sd15.yaml [--ckpt FILE]`

Without a checkpoint the network is built on torch's meta device: shapes and names, no memory.

Imports torch, PEFT (through `lora`) and the rooms model and outputs. Shown in notebooks/01_inspect_modules.ipynb.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from anytext_lcm.adapter.census import compare_checkpoint, layer_table, list_layers, lora_table, part_table, role_table
from anytext_lcm.adapter.targets import resolve_targets
from anytext_lcm.files import check_writable, whole_file
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.checkpoint import load_strict, read_state_dict


def write_targets(model: nn.Module, path: str | Path, targets: Sequence[str] | None = None) -> list[str]:
    """Writes the names of the LoRA targets, one a line, sorted; the file appears whole. Returns the names.

    targets: groups or module names, None for all groups. Raises ValueError for an unknown one and for a
    place that cannot be written.
    """
    names = resolve_targets(model, targets)
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names


def build(config: str | Path, ckpt: str | Path | None = None) -> AnyText2:
    """The network of a yaml, on the meta device, or with the checkpoint's weights. Raises FileNotFoundError
    or ValueError.
    """
    model = AnyText2.from_config(config, device="meta")
    return model if ckpt is None else model.load_checkpoint(ckpt)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.inspect_modules",
        description="List every Linear and Conv2d of an AnyText2 network and write its LoRA targets.",
    )
    parser.add_argument("--config", required=True, help="yaml of the network, in upstream's format")
    parser.add_argument("--ckpt", help="weights to load and check as well; without them shapes are enough")
    parser.add_argument("--output", default="target_modules_list.txt", help="gets one target a line")
    parser.add_argument("--lora_rank", type=int, default=64, help="rank the adapter's size is counted for")
    parser.add_argument("--summary", action="store_true", help="leave out the list of single layers")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what the flags ask and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        if args.lora_rank < 1:
            raise ValueError(f"--lora_rank must be a positive integer, not {args.lora_rank}.")
        check_writable(args.output)
        model = build(args.config)
        report = None
        if args.ckpt:
            state = read_state_dict(args.ckpt)
            report = compare_checkpoint(model, state)
            load_strict(model, state, source=f"Checkpoint {args.ckpt}")
        layers = list_layers(model)
        names = write_targets(model, args.output)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sections = [] if args.summary else [layer_table(layers)]
    sections += [] if report is None else [str(report)]
    sections += [part_table(model, layers), role_table(layers), lora_table(layers, args.lora_rank)]
    try:
        print("\n\n".join(sections))
        print(f"\n{len(names)} LoRA targets are in {args.output}", flush=True)
    except BrokenPipeError:  # `| head` has seen enough; python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
