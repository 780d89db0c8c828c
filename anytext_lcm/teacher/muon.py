"""An optimiser for the weight matrices inside UNet and WriteNet."""

import torch
import torch.distributed as dist
from torch import Tensor

from anytext_lcm.teacher.recipe import Rank


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, weight matrix by weight matrix (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), scaled to the size of Adam's (Liu et al., arXiv:2502.16982, eq. 4).

    torch.optim.Muon takes matrices alone and works in bfloat16; this one takes convolutions as (out, in * k * k),
    works in float32, and with several ranks each does its share and sums up. All gradients must be averaged.
    """

    def __init__(self, params, lr: float, rank: Rank, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.rank = rank

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = group["params"]
            by_shape: dict[tuple[int, int], list[int]] = {}
            for i, p in enumerate(params):
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                by_shape.setdefault((len(p), p[0].numel()), []).append(i)
            updates: list[Tensor] = [None] * len(params)
            flat = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
            for i, (p, part) in enumerate(zip(params, flat.split([p.numel() for p in params]), strict=True)):
                updates[i] = part.view(p.shape)
            for shape, members in by_shape.items():
                mine = members[self.rank.index :: self.rank.world]
                if not mine:
                    continue
                grads, momenta = ([params[i].grad for i in mine], [self.state[params[i]]["momentum"] for i in mine])
                nesterov = [g.lerp(m, group["momentum"]) for g, m in zip(grads, momenta, strict=True)]
                whitened = orthogonal(torch.stack([g.reshape(shape) for g in nesterov]))
                for i, update in zip(mine, whitened.unbind(), strict=True):
                    updates[i].copy_(update.view(params[i].shape))
            if self.rank.world > 1:
                dist.all_reduce(flat)
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * max(len(p), p[0].numel()) ** 0.5)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, a, b) to matrices with the same singular vectors and singular values near 1 (Newton-Schulz, quintic)."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
