"""Settings every test shares."""

import os

# Set before torch starts its threads. In serial test_speed.py is as fast with one as with two, and where the processes
# of pytest-xdist have more threads than there are cores, these wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read at Arrow's first allocation. Its usual pool maps 1 GB at once, all that a case of tests/hostile may have.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

import pytest  # noqa: E402
import torch  # noqa: E402
from micro_network import micro_config, micro_network  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


# Files that fork come first, before other tests have started threads whose locks a child would inherit; then those that
# take longest, so that no process of `make test` is left alone with one of them at the end.
FIRST = "resume ranks training launch watching latents interrupts stopped_drawing files campaign speed adapter".split()
FIRST += "export wheel evaluate benchmark commands build_teacher memory ablate perfect_teacher startup data".split()


def pytest_collection_modifyitems(items):
    """Put files in the order of FIRST; the order within a file stays."""
    places = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state, so that its order does not matter."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with micro.yaml and micro.safetensors, the smallest network that trains."""
    folder = tmp_path_factory.mktemp("teacher")
    OmegaConf.save(micro_config(), folder / "micro.yaml")
    state = {key: value.contiguous().clone() for key, value in micro_network().state_dict().items()}
    save_file(state, folder / "micro.safetensors")
    return folder
