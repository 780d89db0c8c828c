"""Two processes that train together, one or both killed at any moment: what is resumed is the unbroken run."""

import random
import signal
import time

import pytest
from processes import finish, start_ranks
from test_resume import STEPS, assert_same_checkpoint, options, train, whole

from anytext_lcm.training import checkpoints


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory):
    """The run of two processes that nobody stopped, and how long it took."""
    output, began = tmp_path_factory.mktemp("unbroken"), time.monotonic()
    assert finish(start_ranks(2, train, options(teacher, output))) == [0, 0]
    return output / f"checkpoint-{STEPS}", time.monotonic() - began


def kill_ranks(teacher, folder, unbroken, kills, seed):
    """Kill and resume until `kills` have hit; each run that gets to its end has to be the unbroken one."""
    rng, hits, tries, runs = random.Random(seed), 0, 0, 0
    wanted, seconds = unbroken
    output = folder / "0"
    while hits < kills or checkpoints.was_started(output):
        tries += 1
        assert tries < 4 * kills + 4, "too few of the kills hit a run"
        begun = checkpoints.was_started(output)
        ranks = start_ranks(2, train, options(teacher, output, resume_from_checkpoint="latest" if begun else None))
        if hits < kills:
            time.sleep(rng.uniform(0, seconds))
            killed = [rank for rank in rng.choice(([0], [1], [0, 1])) if ranks[rank].is_alive()]
            for rank in killed:
                ranks[rank].kill()
            hits += bool(killed)
        codes = finish(ranks, seconds=90)  # the other one ends by itself
        done = STEPS in whole(output)
        assert done or -signal.SIGKILL in codes, f"exit codes {codes} without a kill"
        if done:
            assert_same_checkpoint(wanted, output / wanted.name)
            runs += 1
            output = folder / str(runs)
    assert runs


def test_two_kills(teacher, tmp_path, unbroken):
    kill_ranks(teacher, tmp_path, unbroken, kills=2, seed=0)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_twenty_kills(teacher, tmp_path, unbroken):
    kill_ranks(teacher, tmp_path, unbroken, kills=20, seed=1)
