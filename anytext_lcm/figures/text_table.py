"""A table as text: columns side by side for a terminal, or Markdown."""

from collections.abc import Iterable, Sequence

from anytext_lcm.files import printable


def text_table(head: Sequence[str], rows: Iterable[Sequence[object]], markdown: bool = False, align: str = "") -> str:
    """Format a table of C columns, one line per row, under its head and a rule.

    rows: C cells each; an int gets thousands separators, anything else is taken as `str` spells it, with escapes for
    what is not printable and, in Markdown, for pipes. markdown: write
    pipes instead of padding the columns. align: one letter per column, l or r; the last one also holds for the columns
    after it. Without it, the columns whose first cell is an int go to the right. Raises ValueError for a row that has
    not C cells.
    """
    rows = list(rows)
    cells = [[f"{cell:,}" if isinstance(cell, int) else printable(str(cell)) for cell in row] for row in rows]
    if markdown:
        cells = [[cell.replace("|", r"\|") for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    align = align or "".join("lr"[isinstance(cell, int)] for cell in (rows[0] if rows else head))
    align = align.ljust(len(head), align[-1])
    if markdown:
        marks = ["---:" if side == "r" else "---" for side in align]
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *cells])
    places = [">" if side == "r" else "<" for side in align]
    layout = "  ".join(f"{{:{place}{width}}}" for place, width in zip(places, widths, strict=True))
    first, *rest = (layout.format(*line).rstrip() for line in [head, *cells])
    return "\n".join([first, "-" * (sum(widths) + 2 * (len(widths) - 1)), *rest])
