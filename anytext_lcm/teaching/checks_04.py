"""The checks of the exercises in notebook 04."""

from collections.abc import Mapping

import torch

from anytext_lcm.teaching.checks import checker, require, same

NAMES = ("train_batch_size", "gradient_accumulation_steps", "num_processes")


def one_gpu(answer) -> str:
    """{setting: number} of one process that updates on 144 pictures."""
    require(isinstance(answer, Mapping), f"it is {type(answer).__name__}, and a dictionary is asked for")
    require(set(answer) == set(NAMES), f"its keys are {', '.join(map(str, answer))}; they must be {', '.join(NAMES)}")
    batch, accumulation, processes = (answer[name] for name in NAMES)
    require(processes == 1, f"it has {processes} processes, and there is one GPU")
    require(batch <= 12, f"a batch of {batch} does not fit: the card has the memory for 12")
    pictures = batch * accumulation
    require(pictures == 144, f"an update averages {pictures} pictures, three GPUs average 144")
    return f"One process sums {accumulation} batches of {batch} before each update."


def deal(answer) -> str:
    """shuffled (list), rank, world, step, batch -> list of pictures."""
    shuffled = [7, 2, 9, 4, 11, 0, 5, 8, 1, 10, 3, 6, 15, 12, 14, 13, 17, 16]
    first = [answer(shuffled, rank, 3, 0, 2) for rank in range(3)]
    require(all(len(batch) == 2 for batch in first), f"at step 0 rank 0 gets {len(first[0])} pictures, not 2")
    require(len(set(sum(map(list, first), []))) == 6, "at step 0 two processes get the same picture")
    require([list(batch) for batch in first] == [[7, 2], [9, 4], [11, 0]], "at step 0 it deals in another order")
    later = [list(answer(shuffled, rank, 3, step, 2)) for step in (1, 2) for rank in range(3)]
    require(later[0] != [9, 4], "step 1 repeats what rank 1 got at step 0: each earlier step dealt `world` batches")
    require(sum(later, []) == shuffled[6:], "steps 1 and 2 do not go on where the step before stopped")
    require(list(answer(shuffled, 1, 2, 1, 3)) == shuffled[9:12], "it is right for 3 processes and wrong for 2")
    return "Every picture is dealt once, in order."


def stops_at(answer) -> str:
    """scores, patience -> index or None."""
    rising = [0.1, 0.2, 0.3, 0.4]
    require(answer(rising, 2) is None, "it stops a run whose reading rises at every panel")
    falling = answer([0.5, 0.4, 0.3, 0.2], 2)
    require(falling != 3, "it stops one panel late: the second panel without a rise is the last of a patience of 2")
    require(falling == 2, f"0.5, 0.4, 0.3 with patience 2 must stop at index 2, not at {falling}")
    require(answer([0.5, 0.5, 0.5], 2) == 2, "a tie counts as a rise; it is no better")
    require(answer([0.5, 0.4, 0.6, 0.5, 0.7], 2) is None, "the counter is not set back to 0 by a better score")
    slow = answer([0.5, 0.3, 0.4, 0.45], 3)
    require(slow == 3, "it compares with the panel before, and not with the best so far")
    return "It stops where --patience stops a run."


def averaged(answer) -> str:
    """mean, weights (same shape), n, decay -> tensor."""
    mean, weights = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])
    late = answer(mean, weights, 10_000, 0.98)
    require(not same(late, 0.02 * mean + 0.98 * weights), "the decay belongs to the mean, not to the new weights")
    require(same(late, 0.98 * mean + 0.02 * weights), "after many updates it is not d * mean + (1 - d) * weights")
    early = answer(mean, weights, 0, 0.98)
    require(not same(early, 0.98 * mean + 0.02 * weights), "the first update keeps 0.98 of the untrained adapter")
    require(same(early, 0.1 * mean + 0.9 * weights), "the first update must keep a tenth of the mean")
    require(same(mean, torch.tensor([1.0, 2.0])), "it changes the tensor that it was given")
    return "It forgets the untrained adapter soon, and averages over about 50 updates in the end."


def merged_weight(answer) -> str:
    """W (out, in), A (r, in), B (out, r), alpha -> (out, in)."""
    generator = torch.Generator().manual_seed(3)
    W, A, B = (torch.randn(*shape, generator=generator) for shape in ((5, 7), (2, 7), (5, 2)))
    found = answer(W, A, B, 6.0)
    require(not same(found, W + B @ A), "the scale alpha / r is missing; here it is 3")
    require(not same(found, 3 * B @ A), "W is missing")
    require(not same(found, W + 6.0 * B @ A), "it scales by alpha and not by alpha / r")
    require(same(found, W + 3 * B @ A), "it is not W + alpha / r * B A")
    x = torch.randn(7, generator=generator)
    require(same(found @ x, W @ x + 3 * B @ (A @ x)), "the merged layer's output is another one")
    return "The merged layer gives the output of the layer with its adapter."


CHECKS = {
    "one_gpu": one_gpu,
    "deal": deal,
    "stops_at": stops_at,
    "averaged": averaged,
    "merged_weight": merged_weight,
}
check = checker(CHECKS)
