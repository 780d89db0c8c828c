"""What an exported adapter draws in the samplers of the tools that load it: lines read, colours, distance.

`python notebooks/exports.py` exports the adapter, reads the files back into networks of their own and draws one panel
of held-out prompts by each: the merged file by LCM's sampler and by the DDIM of AnyText2's own code, the UNet's layers
alone (kohya's and diffusers' layouts) likewise. It writes exports.json and table.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anytext_lcm.command import add_network, new_parser, positive, run
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for

STEPS, TEACHER_STEPS, UPSTREAM_STEPS = 4, 50, 20


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("exports", "What exported files draw in the samplers of other tools.")
    parser.prog = "python notebooks/exports.py"
    add = parser.add_argument
    add("--adapter", default="shipped", metavar="DIR|shipped", help="default: %(default)s")
    add("--prompts", type=positive, default=256, help="of the panel, 2 or more (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the panel (default: %(default)s)")
    add("--output", default="outputs/exports", help="folder of exports.json and table.md (default: %(default)s)")
    add_network(parser, str(EMBEDDED_CONFIG))
    return parser


def networks(config: str, ckpt: str | None, adapter: Path, device: str | None) -> Iterator[tuple[str, Any, list[Any]]]:
    """(what was loaded, the network, the methods that draw with it), one after the other."""
    from anytext_lcm.adapter.formats import split_layers, write_kohya
    from anytext_lcm.adapter.lora import load_adapter
    from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters, write_merged
    from anytext_lcm.drawing.methods import Method, student_method, teacher_method, untrained_method
    from anytext_lcm.model.loading import load_chosen

    guidance = defaults_for(config).guidance_scale

    def ddim(adapter: bool) -> list[Method]:
        """As upstream's sampler draws: leading spacing; without guidance, guided, and guided in its own 20 steps."""
        return [
            Method(f"DDIM of upstream, {steps} steps, guidance {scale:g}", "ddim", steps, scale, adapter, "leading")
            for steps, scale in ((STEPS, 1.0), (STEPS, guidance), (UPSTREAM_STEPS, guidance))
        ]

    model = load_adapter(load_chosen(config, ckpt, device), adapter)
    yield "no adapter", model, [teacher_method(TEACHER_STEPS, guidance), untrained_method(STEPS)]
    yield "peft", model, [student_method(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        merged = write_merged(model, Path(folder) / "merged.safetensors")
        alone = write_kohya(model, Path(folder) / "unet.safetensors")
        known, rest = split_layers(model)
        del model
        yield "merged", load_chosen(config, merged, device), [untrained_method(STEPS), *ddim(False)]
        model = load_adapters(load_chosen(config, ckpt, device), [WeightedAdapter(alone)])
        name = f"UNet alone, {len(known)} of {len(known) + len(rest)} layers"
        yield name, model, [student_method(STEPS), *ddim(True)[:1]]


def measure(
    config: str, ckpt: str | None, adapter: Path, device: str | None, prompts: int, seed: int
) -> dict[str, Any]:
    """The report, ready for JSON: a row per file and sampler. Raises ValueError as the loaders do."""
    from anytext_lcm.drawing.cores import describe_hardware
    from anytext_lcm.judging.compare import run_method
    from anytext_lcm.judging.panel import Panel, prepare_panel

    defaults = defaults_for(config)
    panel, rows, reference, prepared = (
        Panel.build(prompts=prompts, seed=seed, image_size=defaults.size[0]),
        [],
        None,
        None,
    )
    for loaded, model, methods in networks(config, ckpt, adapter, device):
        prepared = prepared or prepare_panel(model, panel, defaults.negative_prompt)
        for method in methods:
            drawn = run_method(model, panel, method, prepared)
            reference = drawn.images if reference is None else reference
            found = panel.judge(drawn.images, reference).measures
            keys = ("accuracy", "objects_obeyed", "ink_obeyed", "distribution", "same_noise")
            row = {"loaded": loaded, "method": dict(drawn.method), "evaluations": drawn.evaluations}
            rows.append(row | {key: found.get(key) for key in keys})
            print(describe(rows[-1]), flush=True)
    return {
        "config": Path(config).name,
        "prompts": prompts,
        "lines": len(panel.groups),
        "seed": seed,
        "hardware": describe_hardware(model.device),
        "rows": rows,
    }


def sampler_of(row: Mapping[str, Any]) -> str:
    """The sampler in words."""
    method = row["method"]
    if method["sampler"] == "lcm":
        return f"LCM, {method['steps']} steps"
    return method["name"] if " " in method["name"] else f"DDIM, {method['steps']} steps, guided"


def describe(row: Mapping[str, Any]) -> str:
    """A row in one line, while the others are drawn."""
    return f"{row['loaded']}: {sampler_of(row)}: {row['accuracy']['value']:.3f} of the lines"


def format_table(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    from anytext_lcm.figures.text_table import text_table

    def interval(found: Mapping[str, float] | None) -> str:
        return "–" if found is None else "{value:.3f} [{low:.2f}, {high:.2f}]".format(**found)

    head = ("file", "sampler", "evaluations", "lines right", "objects", "colour by number", "distance")
    rows = [
        [
            row["loaded"],
            sampler_of(row),
            row["evaluations"],
            *(interval(row[key]) for key in ("accuracy", "objects_obeyed", "ink_obeyed")),
            interval(row["distribution"] and row["distribution"]["kernel"]),
        ]
        for row in report["rows"]
    ]
    counts = f"{report['config']}: {report['prompts']} held-out prompts, {report['lines']} lines"
    conditions = "the same noise for all, 95 % intervals over prompts, kernel distance to real pictures."
    return f"{counts}; {conditions}\n\n{text_table(head, rows, markdown=True, align='llr')}\n"


def work(args: argparse.Namespace) -> str:
    """Check what can be checked, then export, draw, judge and write. Returns the table."""
    from anytext_lcm.adapter.lora import resolve_adapter
    from anytext_lcm.drawing.cores import use_available_cores

    adapter, folder = resolve_adapter(args.adapter), Path(args.output)
    if adapter is None:
        raise ValueError("There is nothing to export without an adapter; name one.")
    check_writable(folder / "exports.json")
    use_available_cores()
    report = measure(args.config, args.ckpt, adapter, args.device, args.prompts, args.seed)
    table = format_table(report)
    for name, text in (("exports.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n"), ("table.md", table)):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
