"""Stock Pyro, as in its tutorial on semi-supervised VAEs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from contender import ALPHA, LEARNING_RATE, Contender, Sizes
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TutorialPyro"]


class _TutorialNets(nn.Module):
    """Networks of the tutorial: the one-hot class is concatenated to the input, and all runs for every class."""

    def __init__(self, num_classes: int, sizes: Sizes) -> None:
        super().__init__()
        self.encoder_y = nn.Sequential(
            nn.Linear(sizes.features, sizes.hidden), nn.Softplus(), nn.Linear(sizes.hidden, num_classes), nn.Softmax(-1)
        )
        self.encoder_z = nn.Sequential(nn.Linear(sizes.features + num_classes, sizes.hidden), nn.Softplus())
        self.loc = nn.Linear(sizes.hidden, sizes.latent)
        self.log_scale = nn.Linear(sizes.hidden, sizes.latent)
        self.decoder = nn.Sequential(
            nn.Linear(sizes.latent + num_classes, sizes.hidden),
            nn.Softplus(),
            nn.Linear(sizes.hidden, sizes.features),
            nn.Sigmoid(),
        )

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder_z(_concatenate(x, y))
        return self.loc(hidden), self.log_scale(hidden).exp()

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        probs: Tensor = self.decoder(_concatenate(z, y))
        return probs


def _concatenate(*parts: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class TutorialPyro(Contender):
    """Stock Pyro as in https://pyro.ai/examples/ss-vae.html, with today's Pyro and nothing tuned.

    Two ``SVI`` objects share one optimiser: ``TraceEnum_ELBO`` with the classes enumerated in parallel, and
    ``Trace_ELBO`` for the auxiliary loss of the classifier. As in the tutorial, both are stepped on every batch,
    labelled or not; on unlabelled examples the second one has no loss, yet Adam moves the weights by its momentum.
    Losses are sums over the batch.

    Args:
        learning_rate: Learning rate of Adam.
        multiplier: Weight of the auxiliary loss.
        **settings: Arguments of :class:`Contender`.
    """

    precisions = ("fp32",)

    def __init__(self, *, learning_rate: float = LEARNING_RATE, multiplier: float = ALPHA, **settings: Any) -> None:
        super().__init__(**settings)
        pyro.clear_param_store()
        self.multiplier = multiplier
        self.nets = _TutorialNets(self.num_classes, self.sizes).to(self.device)
        optimizer = pyro.optim.Adam({"lr": learning_rate})
        guide = config_enumerate(self.guide, "parallel", expand=True)
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        self.svi = SVI(self.model, guide, optimizer, loss=elbo)
        self.auxiliary = SVI(self.model_classify, self.guide_classify, optimizer, loss=Trace_ELBO())

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """p(z) p(y) p(x|y,z), with one-hot classes ``(..., K)``."""
        pyro.module("ss_vae", self.nets)
        shape = (x.shape[0], self.sizes.latent)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(x.new_zeros(shape), x.new_ones(shape)).to_event(1))
            prior = x.new_ones(x.shape[0], self.num_classes) / self.num_classes
            y = pyro.sample("y", dist.OneHotCategorical(prior), obs=y)
            pyro.sample("x", dist.Bernoulli(self.nets.decode(z, y), validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(y|x) q(z|x,y)."""
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(self.nets.encoder_y(x)))
            pyro.sample("z", dist.Normal(*self.nets.encode(x, y)).to_event(1))

    def model_classify(self, x: Tensor, y: Tensor | None = None) -> None:
        """The auxiliary loss: labels under q(y|x)."""
        pyro.module("ss_vae", self.nets)
        with pyro.plate("data"):
            if y is not None:
                with pyro.poutine.scale(scale=self.multiplier):
                    pyro.sample("y_aux", dist.OneHotCategorical(self.nets.encoder_y(x)), obs=y)

    def guide_classify(self, x: Tensor, y: Tensor | None = None) -> None:
        """Empty, since the auxiliary model has no latent variables."""

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take a step on the unlabelled examples, then one on the labelled ones."""
        self.step_on(x_unlabelled)
        if x_labelled is not None and y_labelled is not None:
            self.step_on(x_labelled, y_labelled)

    def step_on(self, x: Tensor, y: Tensor | None = None) -> None:
        """Step both ``SVI`` objects on a batch of either kind; ``SVI`` reads each loss on the host."""
        one_hot = () if y is None else (F.one_hot(y, self.num_classes).to(x),)
        self.svi.step(x, *one_hot)
        self.auxiliary.step(x, *one_hot)
