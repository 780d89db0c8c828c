"""Two repairs, so that nbval runs a notebook as Jupyter does."""

import os

import pytest

nbval_kernel = pytest.importorskip("nbval.kernel")
nbval_plugin = pytest.importorskip("nbval.plugin")


def _execute_with_history(self, cell_input, allow_stdin=None):
    # IPython looks for a trailing ';' in the history, which nbval does not keep.
    return self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False, store_history=True)


nbval_kernel.RunningKernel.execute_cell_input = _execute_with_history

_setup = nbval_plugin.IPyNbFile.setup


def _setup_as_outside_pytest(self):
    # With this variable set, ipykernel does not capture what subprocesses print.
    hidden = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        _setup(self)
    finally:
        if hidden is not None:
            os.environ["PYTEST_CURRENT_TEST"] = hidden


nbval_plugin.IPyNbFile.setup = _setup_as_outside_pytest
