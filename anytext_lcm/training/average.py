"""The moving average of an adapter's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema:
    """Exponential moving average of an adapter, fp32, for export; the student that trains is not touched.

    The decay at update n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage, so that the
    untrained adapter is soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters = dict(parameters)

        def average(mean: Tensor, own: Tensor, updates: Tensor | int) -> Tensor:
            return torch.lerp(mean, own, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

        # a list, since the keys' dots cannot be names of parameters; the first update copies the weights
        self.own = nn.ParameterList(self.parameters.values())
        self.averaged = AveragedModel(self.own, avg_fn=average)
        self.averaged.update_parameters(self.own)

    @property
    def updates(self) -> int:
        """Updates so far, without the copy at the start."""
        return int(self.averaged.n_averaged) - 1

    @property
    def values(self) -> dict[str, Tensor]:
        """The averages by the adapter's keys."""
        return dict(zip(self.parameters, self.averaged.module, strict=True))

    def update(self) -> None:
        """Take the adapter's present weights into the average."""
        self.averaged.update_parameters(self.own)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Put a stored average back."""
        for key, value in self.values.items():
            value.copy_(values[key])
        self.averaged.n_averaged.fill_(updates + 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model carries the average."""
        own = {key: p.detach().clone() for key, p in self.parameters.items()}
        try:
            self._put(self.values)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.copy_(values[key])
        torch.clear_autocast_cache()  # it holds half-precision copies of the weights before
