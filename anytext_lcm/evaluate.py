"""Command: measure what few steps cost: the same prompts and noise for every method, judged by an independent reader.
`python -m anytext_lcm.evaluate --adapter DIR`
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import (
    add_dry_run,
    add_guidance,
    add_network,
    add_precision,
    named,
    natural,
    new_parser,
    panel_lines,
    run,
)
from anytext_lcm.data.text import checked
from anytext_lcm.files import atomic_folder, check_replaceable
from anytext_lcm.judging.defaults import COMPARISON, METHODS, REAL, RECONSTRUCTION
from anytext_lcm.model.networks import EMBEDDED_CONFIG, Defaults, defaults_for
from anytext_lcm.training.flags import add_flags
from anytext_lcm.training.settings import TrainSettings

if TYPE_CHECKING:
    from anytext_lcm.adapter.choices import MadeFor
    from anytext_lcm.judging.panel import Panel

LINES = 256
OTHER_PICTURES = "The panel has the embedded network's pictures; --validation_list or --prompts measure on one's own."
OWN_DATA = ("validation_list", "data_list", "validation_share", "data_root", "index_dir", "wm_thresh", "fit", "fonts")


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("evaluate", "Measures a student against its teacher: readability, likeness, colours, time.")
    add = parser.add_argument
    add(
        "--adapter",
        nargs="+",
        default=["shipped"],
        metavar="DIR|shipped|none",
        help="default: shipped, the one for a method's steps; after the first, others of another training seed or "
        "objective, as LABEL=DIR, by which "
        "the student's methods are drawn too; without a label they are counted from 2",
    )
    add(
        "--lines",
        type=panel_lines,
        help=f"lines of text in the panel; {LINES} give 3 to 5 points either way (default: {LINES}, or what there is)",
    )
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="teacher-N, teacher-N-leading, teacher-N-eta1, teacher-N-dpm++, teacher-N-unipc, each of them also as "
        "teacher-N-karras or teacher-N-dpm++-logsnr, "
        "student-N, student-N-deterministic, student-N-gamma0.3, student-N-w0.5, untrained-N, "
        f"{REAL}, {RECONSTRUCTION} (default: {' '.join(METHODS)})",
    )
    add(
        "--comparison",
        action="store_true",
        help="every family of methods at equal evaluations, which needs diffusers; instead of --methods",
    )
    add(
        "--prompts",
        metavar="FILE",
        help="prompts to draw, a JSON as of sample --batch; they have no real pictures, so no distance to these",
    )
    add_flags(parser, OWN_DATA)
    add("--seed", type=natural, default=0, help="another seed is another panel and other noise")
    add(
        "--sampling_seeds",
        type=int,
        default=1,
        help="pictures of each prompt from different noise; from 2 on diversity is measured (default: %(default)s)",
    )
    add("--edit_share", type=float, default=0.0, help="of prompts that edit a picture (default: %(default)s)")
    add("--hint_share", type=float, default=0.0, help="of prompts with a font hint (default: %(default)s)")
    add(
        "--output",
        type=named,
        default="outputs/evaluation",
        help="folder for report, table and grid (default: %(default)s)",
    )
    add_guidance(parser)
    add_network(parser, str(EMBEDDED_CONFIG))
    add_precision(parser)
    add_dry_run(parser)
    return parser


@dataclass(frozen=True)
class Plan:
    """What the flags ask for, checked."""

    adapter: Path | None
    own: dict[str, Path]  # another of the shipped adapters for a method's steps, by the method's name
    others: dict[str, Path]  # more adapters by label
    methods: list[str]
    panel: "Panel"
    guidance_scale: float
    negative_prompt: str
    precision: str
    other_pictures: bool  # whether the panel is the embedded network's own, and the network another

    @property
    def adapters(self) -> list[Path]:
        return [*dict.fromkeys(filter(None, [self.adapter, *self.own.values(), *self.others.values()]))]


def work(args: argparse.Namespace) -> str:
    """Check what can be checked before the weights are loaded, then draw, judge and write."""
    from anytext_lcm.adapter.lora import load_adapter
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.judging.compare import compare_methods
    from anytext_lcm.judging.report import write_report
    from anytext_lcm.model.loading import load_chosen

    plan = make_plan(args)
    if args.dry_run:
        return describe(args, plan)
    require_network(args.config, args.ckpt, "--ckpt", plan.adapters)
    with atomic_folder(args.output) as folder:
        if plan.other_pictures:
            print(OTHER_PICTURES, file=sys.stderr)
        use_available_cores()
        model = load_chosen(args.config, args.ckpt, args.device, plan.precision)
        if plan.adapter is not None:
            load_adapter(model, plan.adapter)
        settings = {
            "config": Path(args.config).name,
            "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
            "precision": plan.precision,
            "date": date.today().isoformat(),
            "adapter": args.adapter[0] if len(args.adapter) == 1 else args.adapter,
        }
        if plan.own:
            settings["own_adapters"] = {name: folder.name for name, folder in plan.own.items()}
        asked = (plan.methods, plan.guidance_scale, plan.negative_prompt)
        more = {"own_adapters": plan.own, "more_adapters": plan.others}
        report, results = compare_methods(model, plan.panel, *asked, settings, **more)
        write_report(folder, report, results, plan.panel)
    return args.output


def make_plan(args: argparse.Namespace) -> Plan:
    """Check flags, adapters and data. Raises ValueError or FileNotFoundError."""
    from anytext_lcm.adapter.choices import read_made_for
    from anytext_lcm.adapter.lora import shipped_adapters
    from anytext_lcm.adapter.shipped import adapter_for
    from anytext_lcm.adapter.stored import training_header
    from anytext_lcm.drawing.methods import Method, check_negative
    from anytext_lcm.judging.compare import resolve_methods
    from anytext_lcm.model.loading import chosen_precision

    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    negative = defaults.negative_prompt if args.negative_prompt is None else args.negative_prompt
    checked(negative, "The negative prompt")
    adapter, others = read_adapters(args.adapter)
    suits = None if adapter is None else read_made_for(training_header(adapter))
    shipped = shipped_adapters() if args.adapter[0] == "shipped" else {}
    names = choose_methods(args, suits, shipped)
    methods = resolve_methods(names, guidance)
    check_negative(args.negative_prompt, methods)
    students = [method for method in methods if isinstance(method, Method) and method.adapter]
    suited = {method.name: adapter_for(shipped, method.steps) for method in students if shipped}
    own = {name: folder for name, folder in suited.items() if folder != adapter}
    panel = choose_panel(args, defaults)
    names = [name for name in names if panel.has_pictures or name not in (REAL, RECONSTRUCTION)]
    precision = chosen_precision(args.device, args.precision)
    check_replaceable(args.output)
    other_pictures = panel.source == "scenes" and defaults.checkpoint is None
    return Plan(adapter, own, others, names, panel, guidance, negative, precision, other_pictures)


def describe(args: argparse.Namespace, plan: Plan) -> str:
    """Print what is there and what the plan takes. Raises Missing for what is not there."""
    from anytext_lcm.checks.drawing import add_work, look_at_drawing
    from anytext_lcm.checks.everything import tell
    from anytext_lcm.judging.compare import resolve_methods

    found, panel = look_at_drawing(args.config, args.ckpt, plan.adapters, plan.precision), plan.panel
    found.ok("panel", f"{panel.source}: {len(panel) // panel.repeats} prompts with {len(panel.groups)} lines")
    if plan.other_pictures:
        found.note("panel", OTHER_PICTURES)
    if found.complete:
        add_work(found, args.config, panel.size[0], resolve_methods(plan.methods, plan.guidance_scale), len(panel))
    return tell(found)


def read_adapters(names: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """The folder of the first adapter, None for none, and those of the others by label. The shipped one is that for
    4 steps.

    Raises FileNotFoundError or ValueError.
    """
    from anytext_lcm.adapter.lora import resolve_adapter

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


def choose_panel(args: argparse.Namespace, defaults: Defaults) -> "Panel":
    """The panel of the flags: held-out records, prompts of a file, or the embedded network's own pictures.

    Raises ValueError or FileNotFoundError, also for flags that contradict each other.
    """
    from anytext_lcm.data.fonts import PLAIN_FONT
    from anytext_lcm.drawing.jobs import read_batch
    from anytext_lcm.judging.own_panel import panel_of_prompts, panel_of_records
    from anytext_lcm.judging.panel import Panel
    from anytext_lcm.training.data_order import held_out_records

    own = {name: tuple(v) if isinstance(v := getattr(args, name), list) else v for name in OWN_DATA}
    settings = TrainSettings(config=args.config, output_dir=args.output, **own)
    settings.check_values()
    usual = TrainSettings(config=args.config, output_dir=args.output)
    given = [f"--{name}" for name in OWN_DATA if getattr(settings, name) != getattr(usual, name)]
    if args.prompts is not None:
        if others := [flag for flag in given if flag != "--fonts"]:
            raise ValueError(f"{', '.join(others)} is of records: drop it, or --prompts.")
        if pictures := sorted({REAL, RECONSTRUCTION} & set(args.methods or ())):
            raise ValueError(f"{' and '.join(pictures)} need the pictures of records, which --prompts does not have.")
        if args.lines is not None:
            raise ValueError("--lines has no effect on --prompts, whose file says how many there are: drop it.")
        font = settings.fonts[0] if settings.fonts else PLAIN_FONT
        wishes = read_batch(args.prompts, 1_000_000 * args.seed, None)
        return panel_of_prompts(wishes, defaults.size, Path(args.prompts).name, args.sampling_seeds, font)
    lines = LINES if args.lines is None else args.lines
    if settings.holds_out:
        settings.check_held_out()
        return panel_of_records(held_out_records(settings), lines, args.seed, args.sampling_seeds)
    if given:
        raise ValueError(
            f"{', '.join(given)} names no held-out records: say --validation_list, or --data_list with the "
            "--validation_share that was not trained on."
        )
    return Panel.build(
        lines=lines,
        seed=args.seed,
        image_size=defaults.size[0],
        repeats=args.sampling_seeds,
        edit_share=args.edit_share,
        hint_share=args.hint_share,
    )


def choose_methods(
    args: argparse.Namespace, suits: "MadeFor | None", shipped: "Mapping[Path, MadeFor] | None" = None
) -> Sequence[str]:
    """Names of the methods to draw, the student's by the sampler that the (first) adapter was made for.

    suits: None without a student, which then has no methods. shipped: the package's adapters, if they are drawn, each
    in its own steps. Named methods that their adapter was not made for are said on stderr. Raises ValueError.
    """
    from anytext_lcm.judging.compare import resolve_methods

    if args.comparison and args.methods is not None:
        raise ValueError("--comparison names the methods itself: drop it or --methods.")
    if args.methods is None:
        if args.comparison:
            return [name for name in COMPARISON if suits or not name.startswith("student")]
        return [_suited(name, suits, shipped) for name in METHODS if suits or not name.startswith("student")]
    if suits is None and any(name.startswith("student") for name in args.methods):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    resolve_methods(args.methods, 1.0)  # names that cannot be are refused before a warning about others
    for name in args.methods if suits else ():
        found = re.fullmatch(r"student-(\d+)(?:-(deterministic))?", name)
        if found and (complaint := _made_for(name, suits, shipped).complaint(found[2] or "lcm", int(found[1]))):
            print(f"warning: {complaint}", file=sys.stderr)
    return args.methods


def _suited(name: str, suits: "MadeFor | None", shipped: "Mapping[Path, MadeFor] | None") -> str:
    """A default method by the sampler that its adapter was made for."""
    if not name.startswith("student"):
        return name
    return name + "-deterministic" * (_made_for(name, suits, shipped).samplers[0] == "deterministic")


def _made_for(name: str, suits: "MadeFor", shipped: "Mapping[Path, MadeFor] | None") -> "MadeFor":
    """What the adapter of a student's method was made for. Arguments as of `choose_methods`."""
    from anytext_lcm.adapter.shipped import adapter_for

    return shipped[adapter_for(shipped, int(name.split("-")[1]))] if shipped else suits


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
