"""Takes the live views of widgets out of stored notebooks: `python notebooks/drop_views.py FILE...`, after a run.

A stored view points to a model that lives in the kernel of that run, and JupyterLab would say "model not found"
in its place. Without it the page shows the picture that the explorer stored beside it, until the cell is run.
"""

import sys

import nbformat

VIEW = "application/vnd.jupyter.widget-view+json"


def drop_views(notebook: nbformat.NotebookNode) -> int:
    """Removes the views that have another form beside them, in place. Returns how many."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    dropped = [output.data.pop(VIEW) for output in outputs if VIEW in output.get("data", {}) and len(output.data) > 1]
    return len(dropped)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        stored = nbformat.read(path, as_version=4)
        if drop_views(stored):
            nbformat.write(stored, path)
