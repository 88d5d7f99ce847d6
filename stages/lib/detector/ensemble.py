"""An ensemble of two networks of the same inputs, each of which knows another kind of fakes."""

import torch

# A logit is standardised on reals, so that their mean is 0 and their standard deviation 1. Fakes of
# the kind that a network knows are taken to lie around FAKES, with the same deviation. Then
# FAKES * z - FAKES**2 / 2 is log(P(z | fake) / P(z | real)).
FAKES = 2.0


class Ensemble(torch.nn.Module):
    """Two networks with the same inputs as one, for which a fake is what either calls one.

    Fakes are a mixture of two kinds: those that the first network knows, and those that the second
    one knows. So the odds of an image are the weighted mean of its odds by each network, nearly the
    larger of both (the max rule of Kittler et al. 1998, On combining classifiers). A mean of the
    logits would let the network that knows nothing of a fake outvote the other one.
    """

    mean: torch.Tensor  # float32 (2,), of log(P(fake) / P(real)) of reals by each network
    deviation: torch.Tensor  # float32 (2,), the standard deviation of those
    weights: torch.Tensor  # float32 (2,), their sum is 1

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([first, second])
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("deviation", torch.ones(2))
        self.register_buffer("weights", torch.full((2,), 0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the two classes: float (N, 3, S, S) to float32 (N, 2)."""
        outputs = torch.stack([network(inputs).float() for network in self.networks])
        logit = self.joined(outputs[..., 1] - outputs[..., 0])
        return torch.stack([-logit / 2, logit / 2], dim=1)

    def joined(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the ensemble makes of log(P(fake) / P(real)), float (2, N) to (N,)."""
        standardised = (logits - self.mean[:, None]) / self.deviation[:, None]
        ratios = FAKES * standardised - FAKES**2 / 2
        return torch.logsumexp(ratios + self.weights.log()[:, None], dim=0)

    def standardise(self, logits: torch.Tensor, weight: float) -> None:
        """Set mean and deviation from the logits of reals, and the weight of the second network.

        logits: float64 (2, N), log(P(fake) / P(real)) of N reals by each network; weight: above 0,
        below 1.
        """
        self.mean.copy_(logits.mean(dim=1))
        self.deviation.copy_(logits.std(dim=1))
        self.weights.copy_(torch.tensor([1 - weight, weight]))
