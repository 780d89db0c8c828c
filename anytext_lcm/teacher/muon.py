"""An optimiser for the weight matrices inside UNet and WriteNet."""

import torch
import torch.distributed as dist
from torch import Tensor

from anytext_lcm.teacher.processes import Rank, fast_bfloat16


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, weight matrix by weight matrix (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), scaled to the size of Adam's (Liu et al., arXiv:2502.16982, eq. 4).

    torch.optim.Muon refuses convolutions. This one takes them as matrices (out, in * k * k). With several processes
    each does a share of the matrices; gradients must be averaged before.
    """

    def __init__(self, params, lr: float, rank: Rank, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.rank = rank

    @torch.no_grad()
    def step(self) -> None:
        """One update of all parameters, which must have gradients."""
        for group in self.param_groups:
            params = group["params"]
            for p, update in zip(params, self._updates(params, group["momentum"]), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * max(len(p), p[0].numel()) ** 0.5)

    def _updates(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """The orthogonal update of each parameter, views of one flat tensor that is summed over the processes."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(params):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state["momentum"].lerp_(p.grad, 1 - momentum)
            by_shape.setdefault((len(p), p[0].numel()), []).append(i)
        sizes = [p.numel() for p in params]
        flat = torch.zeros(sum(sizes), device=params[0].device)
        updates = [part.view(p.shape) for p, part in zip(params, flat.split(sizes), strict=True)]
        for shape, members in by_shape.items():  # matrices of one shape in one product
            mine = members[self.rank.index :: self.rank.world]
            if not mine:
                continue
            nesterov = [params[i].grad.lerp(self.state[params[i]]["momentum"], momentum) for i in mine]
            stacked = torch.stack([g.reshape(shape) for g in nesterov])
            whitened = orthogonal(stacked.bfloat16() if fast_bfloat16(self.rank) else stacked)
            for i, update in zip(mine, whitened.unbind(), strict=True):
                updates[i].copy_(update.view(params[i].shape))
        if self.rank.world > 1:
            dist.all_reduce(flat)
        return updates


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (n, a, b) with the singular vectors of these, and singular values near 1 (quintic Newton-Schulz).

    In bfloat16 they differ by 3 % (norm of the difference over the norm) and take half the time on a CPU that has it.
    """
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
