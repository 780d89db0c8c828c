"""The tables of an evaluation's report: for the terminal, and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from anytext_lcm.figures.text_table import text_table

HEIGHT_LINES = 10  # a range of heights with fewer lines says nothing and has no column


def _interval(values: Mapping[str, float] | None, digits: int = 3, none: str = "–") -> str:
    return none if values is None else f"{values['value']:.{digits}f} [{values['low']:.2f}, {values['high']:.2f}]"


def _number(value: float | None, form: str, none: str = "–") -> str:
    return none if value is None else format(value, form)


def _diversity(row: Mapping[str, Any]) -> str:
    return _number(row["diversity"] and row["diversity"]["value"], ".2f")


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """Method -> its name in a table; the reference and its four-step student in bold."""
    bold = (report["reference"], "student-4")
    return {name: f"**{name}**" if name in bold else name for name in report["methods"]}


def times_of(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """Keys of the times and of the speed-ups that count on this hardware, and their unit."""
    if report["hardware"]["device"] == "cpu":
        return "core_seconds_a_picture", "speedup_cores", "core s"
    return "seconds_a_picture", "speedup_wall", "s"


def _of(panel: Mapping[str, Any]) -> str:
    """What the real pictures of a panel of one's own are, in brackets."""
    return f" ({panel['real']})" if panel.get("real") else ""


OBEDIENCE = {  # measure of `judging/obedience.py`: its short heading; the first two stand in the first table
    "objects_obeyed": "objects",
    "ink_obeyed": "colour by number",
    "background_obeyed": "background",
    "text_colour_obeyed": "named text colour",
    "fonts_obeyed": "font",
    "kept_outside": "kept, dB",
}
_HEADINGS = {key: words if key == "kept_outside" else f"{words} obeyed" for key, words in OBEDIENCE.items()}


_IN_FIRST = ("objects_obeyed", "ink_obeyed")


def _obedience(report: Mapping[str, Any], keys: Sequence[str] = tuple(OBEDIENCE)) -> dict[str, str]:
    """Those of these measures of obedience that the panel has, with their headings."""
    rows = report["methods"].values()
    return {key: OBEDIENCE[key] for key in keys if any(row.get(key) for row in rows)}


def _form(key: str) -> str:
    return ".1f" if key == "kept_outside" else ".2f"


# -- for the terminal -----------------------------------------------------------------------------------


def plain_table(report: Mapping[str, Any]) -> str:
    """The report as one table with its legend."""
    times, speed, unit = times_of(report)
    several = report["panel"].get("sampling_seeds", 1) > 1
    head = ["method", "evals", "s", "faster", "lines right", "retention", "NED", "kernel", "RMSE", "sharp"]
    obeyed = _obedience(report)
    head += [*obeyed.values(), *(["diversity"] if several else [])]
    rows = []
    for name, row in report["methods"].items():
        cells = [
            name,
            str(row["evaluations"] or "-"),
            _number(row[times].get("denoise"), ".3f", "-"),
            _number(row.get(speed, {}).get("denoise"), ".1f", "-"),
            _interval(row["accuracy"], none="-"),
            _interval(row.get("retention"), none="-"),
            f"{row['ned']['value']:.3f}",
            _number(row["distribution"] and row["distribution"]["kernel"]["value"], ".3f", "-"),
            _number(row.get("same_noise", {}).get("rmse"), ".1f", "-"),
            _number(row["sharpness"]["gradient_energy_to_real"], ".2f", "-"),
            *(_number(row.get(key) and row[key]["value"], _form(key), "-") for key in obeyed),
            *([_diversity(row)] if several else []),
        ]
        rows.append(cells)
    panel, distribution = report["panel"], next(iter(report["methods"].values()))["distribution"]
    against = (
        f"retention, faster and RMSE (levels of 255) against {report['reference']}; " if report["reference"] else ""
    )
    if distribution:
        floor = _number(distribution["kernel_floor"]["value"], ".3f")
        distance = f"kernel distance to unseen real pictures{_of(panel)}, which are {floor} apart themselves;"
    else:
        distance = f"no distance to real pictures{_of(panel)};"
    seconds = "seconds of one core" if unit == "core s" else "seconds"
    words = [
        f"{panel['prompts']} prompts, {panel['lines']} lines, 95 % intervals over prompts; the same noise for all; "
        f"s: {seconds} a picture without decoding;",
        against + distance,
        "sharp: gradient energy at the text over that of the real pictures.",
    ]
    if several:
        words.append(
            f"{panel['sampling_seeds']} sampling seeds a prompt; diversity: distance of a prompt's pictures from "
            "different noise, in deviations of real pictures."
        )
    return "\n".join([text_table(head, rows, align="lr"), *words])


# -- in Markdown ----------------------------------------------------------------------------------------


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return text_table(head, rows, markdown=True, align="lr")


def cost_and_reading(report: Mapping[str, Any], methods: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """The first table: what a picture takes, how its text reads, what is obeyed, how far it is from real pictures.

    methods: which of the report's; columns: which of the table's, by their headings; all of them by default.
    """
    times, speed, unit = times_of(report)
    prepare = report["prepare_seconds_a_picture"]["cores" if times.startswith("core") else "wall"]
    head = ["method", "evaluations", f"denoising, {unit}", f"whole picture, {unit}", "faster, denoising / whole"]
    obeyed = _obedience(report, _IN_FIRST)
    head += ["lines right", "NED", "retention", *(f"{words} obeyed" for words in obeyed.values()), "distance to real"]
    rows = []
    for name, shown in _names(report).items():
        if methods and name not in methods:
            continue
        row = report["methods"][name]
        parts, faster = row[times], row.get(speed)
        whole = prepare + sum(parts.values()) if "denoise" in parts else None
        cells = [
            shown,
            str(row["evaluations"] or "–"),
            _number(parts.get("denoise"), ".3f"),
            _number(whole, ".3f"),
            "–" if faster is None else f"{faster['denoise']:.1f} / {faster['end_to_end']:.1f}",
            _interval(row["accuracy"]),
            f"{row['ned']['value']:.3f}",
            _interval(row.get("retention")),
            *(_interval(row.get(key), 2) for key in obeyed),
            _interval(row["distribution"] and row["distribution"]["kernel"], 2),
        ]
        rows.append(cells)
    kept = [place for place, name in enumerate(head) if not columns or name in columns]
    return _markdown([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def line_count(bucket: Mapping[str, Any]) -> int:
    """Lines in a range of heights; reports before this field counted them in `n`, with Wilson's intervals."""
    return bucket.get("lines", bucket["n"])


def by_height(report: Mapping[str, Any]) -> str:
    """Lines right by the height of their box in pixels; ranges of few lines are left out. Empty when none is left."""

    def words(bucket: Mapping[str, Any]) -> str:
        low, high = bucket["from"], bucket["to"]
        span = f"from {low:g}" if high is None else f"under {high:g}" if not low else f"{low:g} to {high:g}"
        return f"{span} px ({line_count(bucket)} lines)"

    first = next(iter(report["methods"].values()))["by_height"]
    kept = [bucket["from"] for bucket in first if line_count(bucket) >= HEIGHT_LINES]
    if not kept:
        return ""
    rows = [
        [shown, *(_interval(b) for b in report["methods"][name]["by_height"] if b["from"] in kept)]
        for name, shown in _names(report).items()
    ]
    return _markdown(["method", *(words(b) for b in first if b["from"] in kept)], rows)


def by_kind(report: Mapping[str, Any]) -> str:
    """Lines right by what they say; empty for a report of an earlier version, which lacks it."""
    kinds = next(iter(report["methods"].values())).get("by_kind", ())
    if not kinds:
        return ""
    rows = [[shown, *map(_interval, report["methods"][name]["by_kind"])] for name, shown in _names(report).items()]
    return _markdown(["method", *(f"{found['kind']} ({found['lines']} lines)" for found in kinds)], rows)


def likeness(report: Mapping[str, Any]) -> str:
    """What the first table leaves out: sharpness, distance from the same noise, other obedience, diversity."""
    several = report["panel"].get("sampling_seeds", 1) > 1
    obeyed = _obedience(report, [key for key in OBEDIENCE if key not in _IN_FIRST])
    head = ["method", "sharpness", "same-noise distance", *(_HEADINGS[key] for key in obeyed)]
    rows = []
    for name, shown in _names(report).items():
        row = report["methods"][name]
        cells = [
            shown,
            _number(row["sharpness"]["gradient_energy_to_real"], ".2f"),
            _number(row.get("same_noise", {}).get("rmse"), ".0f"),
            *(_number(row.get(key) and row[key]["value"], _form(key)) for key in obeyed),
        ]
        rows.append(cells + ([_diversity(row)] if several else []))
    return _markdown(head + (["diversity"] if several else []), rows)


def equal_evaluations(report: Mapping[str, Any]) -> str:
    """The student against everything that needs no training at as many evaluations; empty without such a pair."""
    rows = []
    for pair in report.get("equal_evaluations", ()):
        difference, distances = pair["accuracy_difference"], pair["kernel"]
        reads = "more" if difference["low"] > 0 else "fewer" if difference["high"] < 0 else "no difference shown"
        nearer = "–" if None in distances else "nearer" if distances[0] < distances[1] else "farther"
        cells = [
            pair["student"],
            pair["rival"],
            str(pair["evaluations"]),
            "{value:+.3f} [{low:+.2f}, {high:+.2f}]".format(**difference),
            reads,
            " to ".join(_number(d, ".2f") for d in distances),
            nearer,
        ]
        rows.append(cells)
    head = ["student", "rival", "evaluations", "lines right, student less rival", "reads", "distance to real", "is"]
    return _markdown(head, rows) if rows else ""


def legend(report: Mapping[str, Any]) -> str:
    """The conditions of the measurement, in a few sentences."""
    panel, hardware, settings = report["panel"], report["hardware"], report["settings"]
    seeds, floor, diversity = panel.get("sampling_seeds", 1), "", ""
    if distribution := next(iter(report["methods"].values()))["distribution"]:
        floor = (
            f" Distance to real is the kernel distance to unseen real pictures{_of(panel)}; two sets of those are "
            f"{distribution['kernel_floor']['value']:.3f} apart."
        )
    elif panel.get("real"):
        floor = f" There is no distance to real pictures ({panel['real']})."
    if seeds > 1:
        diversity = (
            " Diversity is the distance of a prompt's pictures from different noise, in deviations of real pictures."
        )
    cores = hardware.get("cores")
    device = hardware.get("gpu") or f"{hardware.get('cpu') or 'CPU'}, {cores} core{'s' * (cores != 1)}"
    date = f", {settings['date']}" if settings.get("date") else ""
    # Reports of before have no "lines" in a range of heights, and Wilson's intervals there.
    buckets = [bucket for row in report["methods"].values() for bucket in row["by_height"]]
    by_height_too = "" if all("lines" in bucket for bucket in buckets) else ", by height Wilson's"
    source = panel.get("source", "scenes")
    kind = "" if source == "scenes" else f" ({source})"
    relative = f" Retention and speed are relative to {report['reference']}." if report["reference"] else ""
    task = "" if panel.get("task", "mock") == "mock" else f" of the {panel['task']} task"
    return (
        f"{panel['prompts']} prompts{kind}{task}, {panel['lines']} lines, {seeds} sampling seed{'s' * (seeds > 1)} "
        f"each, panel {panel['seed']}; 95 % bootstrap intervals over prompts{by_height_too}; the same noise for every "
        f"method; guidance {settings['guidance_scale']:g}, batch {settings['batch_size']}; {device}; torch "
        f"{report['versions']['torch']}{date}.{relative}{floor} "
        f"Sharpness is gradient energy at the text over that of real pictures, the same-noise distance is in levels of "
        f"255.{diversity}"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """All tables with their headings, for `table.md`. Raises KeyError for a report of another form."""
    parts = {
        "What it takes and how it reads": cost_and_reading(report),
        "At equal evaluations": equal_evaluations(report),
        "Lines right by height of the box": by_height(report),
        "Lines right by what they say": by_kind(report),
        "What reading does not see": likeness(report),
    }
    blocks = [f"### {title}\n\n{table}" for title, table in parts.items() if table]
    return "\n\n".join([legend(report), *blocks]) + "\n"
