"""Makes notebooks fit to be stored: `python notebooks/tidy.py FILE...`, after a run.

A stored view of a widget points to a model that lives in the kernel of that run, and JupyterLab would say "model not
found" in its place: it goes where the explorer stored a picture beside it. Large pictures are kept in 256 colours,
which is a third of the bytes and nothing to be seen.
"""

import base64
import io
import sys

import nbformat
from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"
LARGE = 20_000  # bytes of a PNG as text


def drop_views(notebook: nbformat.NotebookNode) -> int:
    """Removes the views that have another form beside them, in place. Returns how many."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    dropped = [output.data.pop(VIEW) for output in outputs if VIEW in output.get("data", {}) and len(output.data) > 1]
    return len(dropped)


def shrink_pictures(notebook: nbformat.NotebookNode) -> int:
    """Stores large pictures with a palette where that is smaller, in place. Returns how many."""
    count = 0
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        text = output.get("data", {}).get("image/png", "")
        if len(text) > LARGE:
            buffer = io.BytesIO()
            picture = Image.open(io.BytesIO(base64.b64decode(text)))
            if picture.mode == "P":  # a second palette would only lose colours
                continue
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            smaller = base64.b64encode(buffer.getvalue()).decode()
            if len(smaller) < len(text):
                output.data["image/png"], count = smaller, count + 1
    return count


if __name__ == "__main__":
    for path in sys.argv[1:]:
        stored = nbformat.read(path, as_version=4)
        if drop_views(stored) + shrink_pictures(stored):
            nbformat.write(stored, path)
