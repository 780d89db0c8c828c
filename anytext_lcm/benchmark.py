"""Command: AnyText-benchmark, teacher and student in one go. `python -m anytext_lcm.benchmark --help`.

Reads the benchmark's own files (`laion_word/test1k.json`, `wukong_word/test1k.json`), draws every prompt as AnyText2's
evaluation does (eval/anytext2_singleGPU.py: 4 pictures, 20 guided DDIM steps, the first 20 lines of 20 characters, the
same words added to the caption, a font hint in the glyphs' font) and names the pictures as it does, NAME_0.jpg ...
NAME_3.jpg, so that its scripts for FID and CLIPScore can be run on the folders. What differs is said in the report:
the reader is PP-OCRv6 and not ModelScope's, and each picture has its own noise, from seed 100 on, where upstream
draws four from one generator. A run that was cut off goes on where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anytext_lcm import __version__
from anytext_lcm.adapter.lora import CONFIG_FILE, WEIGHTS_FILE, resolve_adapter
from anytext_lcm.adapter.mix import Part, load_parts
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.drawing.cores import describe_hardware, use_available_cores
from anytext_lcm.drawing.methods import Method, parse_method, reference_of
from anytext_lcm.files import check_writable, whole_file
from anytext_lcm.judging import reading
from anytext_lcm.judging.benchmark_set import (
    NOTES,
    PUBLISHED,
    REPORT,
    check_font,
    check_settings,
    content_of,
    draw_tasks,
    format_table,
    read_tasks,
    score_tasks,
    settings_of,
    summarise,
)
from anytext_lcm.judging.defaults import ADDED_WORDS, SAMPLES, SEED
from anytext_lcm.judging.defaults import BENCHMARK_METHODS as METHODS
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, checkpoint_for, defaults_for


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.benchmark",
        description="Draws AnyText-benchmark by teacher and student and has the lines read.",
    )
    add = parser.add_argument
    add("--data", required=True, help="test1k.json of laion_word or wukong_word")
    add(
        "--output",
        default="outputs/benchmark",
        help="gets a folder of pictures for each method, and report.json; goes on where it stopped "
        "(default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help="teacher-N, teacher-N-eta1, student-N, student-N-deterministic, "
        f"student-N-gamma0.3, student-N-w0.5 or untrained-N in N steps (default: {' '.join(METHODS)})",
    )
    add("--limit", type=int, help="prompts, the first ones; default: all")
    add("--samples", type=int, default=SAMPLES, help="pictures a prompt (default: %(default)s, upstream's)")
    add("--seed", type=int, default=SEED, help="of the first picture of each prompt (default: %(default)s, upstream's)")
    add(
        "--font",
        default=PLAIN_FONT,
        help="of glyphs and font hint, file or matplotlib font; upstream's is Arial Unicode, and Chinese needs one "
        "that has it (default: %(default)s)",
    )
    add("--no_font_hint", action="store_true", help="leave the font open")
    add("--words", default=ADDED_WORDS, help="behind every caption (default: %(default)s)")
    add("--guidance_scale", type=float, help="the teacher's; default: what suits the network, 7.5 at full size")
    add("--negative_prompt", help="the teacher's; default: what suits the network")
    add("--adapter", default="shipped", metavar="DIR|shipped|none", help="default: %(default)s")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _methods(args: argparse.Namespace, adapter: Path | None, guidance: float) -> list[Method]:
    methods = [parse_method(name, guidance) for name in dict.fromkeys(args.methods)]
    if adapter is None and any(method.adapter for method in methods):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    return methods


def _contents(args: argparse.Namespace, adapter: Path | None) -> dict[str, str]:
    """What the named files hold. Raises FileNotFoundError."""
    found = {
        "data": content_of(args.data),
        "config": content_of(args.config),
        "ckpt": content_of(args.ckpt or checkpoint_for(args.config, "--ckpt"), ends=True),
        "font": content_of(font_path(args.font)),
    }
    if adapter is not None:  # alpha stands in the configuration
        found["adapter"] = "; ".join(content_of(adapter / name) for name in (WEIGHTS_FILE, CONFIG_FILE))
    return found


def run(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Checks what can be checked before the weights are loaded, then draws, reads and writes."""
    for name in ("samples", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be 1 or more, not {value}.")
    if args.seed < 0:
        raise ValueError(f"A seed must be an integer from 0 on, not {args.seed}.")
    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    negative = defaults.negative_prompt if args.negative_prompt is None else args.negative_prompt
    adapter = resolve_adapter(args.adapter)
    methods = _methods(args, adapter, guidance)
    tasks = read_tasks(args.data, args.limit)
    unwritten = check_font(tasks, args.font)
    output = Path(args.output)
    check_writable(output / REPORT)
    names = {
        "data": Path(args.data).name,
        "config": Path(args.config).name,
        "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
        "adapter": args.adapter,
        "font": str(args.font),
    }
    settings = {
        "names": names,
        "contents": _contents(args, adapter),
        "size": list(defaults.size),
        "samples": args.samples,
        "seed": args.seed,
        "font_hint": not args.no_font_hint,
        "words": args.words,
        "negative_prompt": negative,
    }
    for method in methods:
        check_settings(output / method.name, settings_of(method, settings))

    use_available_cores()
    model = load_chosen(args.config, args.ckpt, args.device)
    if adapter is not None:
        load_parts(model, [Part(adapter)])
    reader, scores, seconds = reading.LineReader(), {}, {}
    read = partial(score_tasks, reader, tasks, samples=args.samples, size=defaults.size)
    for method in methods:
        folder = output / method.name
        seconds[method.name] = draw_tasks(model, tasks, method, folder, settings)
        scores[method.name] = read(folder=folder)
    reference = reference_of(methods)
    rows = summarise(scores, reference)
    for name, row in rows.items():
        row["seconds_this_run"] = seconds[name]
    place = str(Path(args.data).resolve())
    published = next((found for key, found in PUBLISHED.items() if key in place), None)
    report = {
        "anytext_lcm": __version__,
        "settings": settings | {"guidance_scale": guidance},
        "prompts": len(tasks),
        "lines": sum(len(task.lines) for task in tasks),
        "lines_the_font_lacks": unwritten,
        "samples": args.samples,
        "reference": reference,
        "published": None if published is None else dict(zip(("name", "accuracy", "ned"), published, strict=True)),
        "hardware": describe_hardware(model.device),
        "notes": list(NOTES),
        "methods": rows,
    }
    with whole_file(output / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return output, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        output, report = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(report))
    print(output / REPORT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
