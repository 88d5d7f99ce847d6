"""An ensemble: two networks of the same inputs whose logits are averaged."""

import torch


class Ensemble(torch.nn.Module):
    """Two networks with the same inputs as one, which returns a weighted sum of their logits."""

    factors: torch.Tensor  # float32 (2,), of the logits of each network
    offset: torch.Tensor  # float32 (2,), which is added to the logits of real and fake

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([first, second])
        self.register_buffer("factors", torch.tensor([0.5, 0.5]))
        self.register_buffer("offset", torch.tensor([0.0, 0.0]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the two classes: float (N, 3, S, S) to float32 (N, 2)."""
        first, second = (network(inputs).float() for network in self.networks)
        return self.factors[0] * first + self.factors[1] * second + self.offset

    def joined(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the ensemble makes of log(P(fake) / P(real)) of its networks.

        float64 (2, N) to (N,), on the device of the ensemble.
        """
        return self.factors.double() @ logits + self.offset.double().diff()

    def standardise(self, logits: torch.Tensor, weight: float) -> None:
        """Set factors and offset, so that each network counts by its weight and not by its scale.

        The logits of both are standardised on the reals: their mean becomes 0, their standard
        deviation 1. Then they are averaged, and the average gets a mean and a deviation between
        those of the networks, so that it is a logit again.

        logits: float64 (2, N), log(P(fake) / P(real)) of N reals by each network; weight: that of
        the second network, from 0 to 1.
        """
        weights = torch.tensor([1 - weight, weight], dtype=torch.float64)
        mean, deviation = logits.mean(dim=1), logits.std(dim=1)
        factors = weights * (weights @ deviation) / deviation
        self.factors.copy_(factors)
        offset = weights @ mean - factors @ mean
        self.offset.copy_(torch.stack([-offset / 2, offset / 2]))
