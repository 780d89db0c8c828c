"""Settings every test shares."""

import os

# Set before torch starts its threads: small networks run slower when several pools fight for a few cores.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state, so that its order does not matter."""
    torch.manual_seed(0)
