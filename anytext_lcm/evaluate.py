"""Measures what few steps cost: the same prompts and the same noise for every method, judged by an
independent reader. `python -m anytext_lcm.evaluate --help`.

Imports torch, numpy and the rooms data, lcm, lora, model, outputs, pipeline, judge, sheet, plots, tables;
diffusers where its solvers are asked for.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from anytext_lcm.adapter.lora import load_adapter, resolve_adapter
from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.files import whole_directory
from anytext_lcm.judging.compare import compare_methods, resolve_methods
from anytext_lcm.judging.defaults import COMPARISON, METHODS, REAL, RECONSTRUCTION
from anytext_lcm.judging.panel import Panel
from anytext_lcm.judging.report import write_report
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.evaluate",
        description="Measures a student against its teacher: readability, likeness, colours, time.",
    )
    add = parser.add_argument
    add(
        "--adapter",
        nargs="+",
        default=["shipped"],
        metavar="DIR|shipped|none",
        help="default: shipped; after the first, others of another training seed or objective, as LABEL=DIR, by which "
        "the student's methods are drawn too; without a label they are counted from 2",
    )
    add(
        "--lines",
        type=int,
        default=256,
        help="lines of text in the panel; 256 give 3 to 5 points either way (default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="teacher-N, teacher-N-leading, teacher-N-eta1, teacher-N-dpm++, teacher-N-unipc, "
        "student-N, student-N-deterministic, student-N-gamma0.3, student-N-w0.5, untrained-N, "
        f"{REAL}, {RECONSTRUCTION} (default: {' '.join(METHODS)})",
    )
    add(
        "--comparison",
        action="store_true",
        help="the methods of the README's table, which need diffusers; instead of --methods",
    )
    add("--seed", type=int, default=0, help="another seed is another panel and other noise")
    add(
        "--sampling_seeds",
        type=int,
        default=1,
        help="pictures of each prompt from different noise; from 2 on diversity is measured (default: %(default)s)",
    )
    add("--guidance_scale", type=float, help="the teacher's; default: what suits the network")
    add("--negative_prompt", help="the teacher's; default: what suits the network")
    add("--output", default="outputs/evaluation", help="folder for report, table and grid (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _adapters(names: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """The first adapter, None for none, and the others by label. Raises FileNotFoundError or ValueError."""
    first = resolve_adapter(names[0])
    others: dict[str, Path] = {}
    for number, name in enumerate(names[1:], 2):
        label, mark, folder = name.partition("=")
        label, folder = (label, folder) if mark else (str(number), name)
        if "none" in (names[0], folder):
            raise ValueError("none stands alone: it is the teacher, and no other adapter can be compared with it here.")
        if not re.fullmatch(r"[\w.]+", label) or label in others:
            raise ValueError(f"The label {label!r} of an adapter must be a word of its own, as in x0=DIR.")
        others[label] = resolve_adapter(folder)
    return first, others


def run(args: argparse.Namespace) -> Path:
    """Checks what can be checked before the weights are loaded, then draws, judges and writes."""
    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    negative = defaults.negative_prompt if args.negative_prompt is None else args.negative_prompt
    adapter, others = _adapters(args.adapter)
    if args.comparison and args.methods is not None:
        raise ValueError("--comparison names the methods itself: drop it or --methods.")
    names = args.methods
    if names is None:
        usual = COMPARISON if args.comparison else METHODS
        names = [name for name in usual if adapter or not name.startswith("student")]
    if adapter is None and any(name.startswith("student") for name in names):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    resolve_methods(names, guidance)
    panel = Panel.build(lines=args.lines, seed=args.seed, image_size=defaults.size[0], repeats=args.sampling_seeds)
    output = Path(args.output)
    with whole_directory(output) as folder:
        use_available_cores()
        model = load_chosen(args.config, args.ckpt, args.device)
        if adapter is not None:
            load_adapter(model, adapter)
        settings = {
            "config": Path(args.config).name,
            "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
            "date": date.today().isoformat(),
            "adapter": args.adapter[0] if len(args.adapter) == 1 else args.adapter,
        }
        report, results = compare_methods(model, panel, names, guidance, negative, settings, more_adapters=others)
        write_report(folder, report, results, panel)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
