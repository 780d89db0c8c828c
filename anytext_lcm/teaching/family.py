"""What notebook 06 needs to train the family of few-step methods on the exact toy.

The methods themselves, about fifteen lines each, stand in the notebook.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.teaching.toy import SCHEDULE, Mixture

Loss = Callable[[nn.Module, torch.Generator], Tensor]  # draws its own points; the gradient reaches the network


def angle(timesteps: Tensor, like: Tensor) -> Tensor:
    """atan(sigma_t / alpha_t), fp32 (B, 1): time as the angle by which data are turned towards noise."""
    alpha, sigma = SCHEDULE.alpha_sigma(timesteps, like)
    return torch.atan2(sigma, alpha)


class TwoTimeStudent(nn.Module):
    """A network of two times: the average velocity of a path between two angles, (B, D), (B, 1), (B, 1) -> (B, D).

    It starts as the exact velocity of `data` at the first angle plus a correction that is zero.
    """

    def __init__(self, data: Mixture, width: int = 96, seed: int = 0):
        super().__init__()
        self.data, dims = data, data.means.shape[1]
        sizes = [3 * dims + 6, width, width, width]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
            self.net = nn.Sequential(*hidden, nn.Linear(width, dims))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        level = start.tan().log()
        times = [start, end, start - end, level, level.sin(), level.cos()]
        inside = torch.cat([x, 3 * x, x / (start.sin() + 0.1), *times], -1)
        return self.data.velocity(x, start) + self.net(inside)


def fit(network: nn.Module, loss: Loss, updates: int, seed: int = 0, learning_rate: float = 2e-3) -> nn.Module:
    """Train the network in place with Adam, the learning rate falling to a fiftieth, and return it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - 0.98 * update / updates)
        value = loss(network, generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return network


def twin(network: nn.Module) -> nn.Module:
    """A copy that trains on its own."""
    return copy.deepcopy(network)


@torch.no_grad()
def jumps(network: TwoTimeStudent, noise: Tensor, steps: int) -> Tensor:
    """Samples (B, D) of a two-time student: from t = 999 over the few-step timesteps to t = 0, without fresh noise."""
    x, places = noise, [*lcm_timesteps(steps).tolist(), 0]
    for t, s in pairwise(places):
        start, end = (angle(torch.full((len(x),), place), x) for place in (t, s))
        x = x - (start - end) * network(x, start, end)
    return x
