"""Peak memory and speed of full-size training on a GPU, with random weights: one command, a few minutes.

    python tests/full/speed.py [--batches 3 6 12] [--precision fp16] [--gradient_checkpointing] [--latents]

Prints a table in Markdown with the memory that `anytext_lcm.memory` expects beside what was allocated, and the
JSON of it. 512 px, rank 64, all default targets. --device cpu and another --config show that it works.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from anytext_lcm import memory
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.distill import DistillStep, seeded_generator
from anytext_lcm.lora import adapter_state, attach
from anytext_lcm.model.anytext2 import AnyText2

ROOT = Path(__file__).parents[2]
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def network(config: str, precision: str, device: str, rank: int) -> AnyText2:
    """Random weights, nothing zero; the embedded tokenizer stands in for CLIP's, which is not in the repository."""
    yaml = OmegaConf.load(config)
    yaml.model.params.cond_stage_config.params.version = str(ROOT / "anytext_lcm/assets/tokenizer")
    torch.manual_seed(0)
    model = AnyText2.from_config(yaml, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return attach(model.to(DTYPES[precision]).requires_grad_(False), rank, rank).to(device)


def measure(arguments: argparse.Namespace, batch_size: int) -> dict[str, object]:
    """Two updates to warm up, then the timed ones; None for the numbers when the memory does not suffice."""
    cuda = arguments.device == "cuda"
    side = 8 * int(OmegaConf.load(arguments.config).model.params.image_size)
    how = {"precision": arguments.precision, "latents": arguments.latents}
    how |= {"gradient_checkpointing": arguments.gradient_checkpointing}
    expected = memory.estimate(arguments.config, batch_size, arguments.rank, **how)["total"]
    peak = None if cuda else "-"
    row = {"batch": batch_size, "expected": round(expected, 1), "peak": peak, "samples_per_second": None}
    dataset = MockDataset(4, image_size=side)
    batch = collate([dataset[i % 4] for i in range(batch_size)])
    batch = {k: v.to(arguments.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        model = network(arguments.config, arguments.precision, arguments.device, arguments.rank)
        for trunk in (model.model.diffusion_model, model.control_model):
            trunk.gradient_checkpointing = arguments.gradient_checkpointing
        if arguments.latents:
            latents = torch.randn(batch_size, model.latent_channels, side // 8, side // 8, device=arguments.device)
            batch |= {"latents": latents, "masked_latents": latents}
        parameters = list(adapter_state(model).values())
        optimizer, step = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0), DistillStep(model)
        scaler = torch.amp.GradScaler(arguments.device, enabled=arguments.precision == "fp16" and cuda)
        for update in range(2 + arguments.updates):
            if update == 2:
                if cuda:
                    torch.cuda.synchronize()
                began = time.perf_counter()
            with torch.autocast(arguments.device, DTYPES[arguments.precision], enabled=arguments.precision != "no"):
                loss = step(batch, seeded_generator(0, update)).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
            row["peak"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        row["samples_per_second"] = round(batch_size * arguments.updates / (time.perf_counter() - began), 2)
    except torch.OutOfMemoryError:
        pass
    return row


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[3, 6, 12])
    parser.add_argument("--precision", choices=DTYPES, default="fp16")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--latents", action="store_true", help="as with precomputed latents: nothing is encoded")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--config", default=str(ROOT / "models_yaml" / "anytext2_sd15.yaml"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser


def main(words: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: There is no GPU here; nothing was measured.", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    rows = []
    for batch_size in arguments.batches:
        rows.append(measure(arguments, batch_size))
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    print(f"| batch | expected, GiB | peak allocated, GiB | samples/s on one {name} |\n|---:|---:|---:|---:|")
    for row in rows:
        print("| " + " | ".join("does not fit" if value is None else str(value) for value in row.values()) + " |")
    print(json.dumps({"device": name, "torch": torch.__version__, **vars(arguments), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
