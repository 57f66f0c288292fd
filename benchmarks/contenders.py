"""Implementations of one training step of M2, with a common interface.

All have the widths of :class:`Sizes`, softplus activations, Bernoulli pixels, a uniform class prior, an MLP as
classifier, and Adam. A step is complete: bound, gradients, update. The loss is not read back to the host, except where
Pyro's ``SVI`` does so itself.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedELBO, TrainingConfig
from pyro_ssvae.data import Batch
from pyro_ssvae.training.config import make_fabric
from pyro_ssvae.training.step import TrainingStep

LEARNING_RATE = 1e-3
NUM_LABELLED, NUM_UNLABELLED = 100, 49_900  # training examples that minibatches stand for: MNIST with 100 labels
ALPHA = 10.0  # weight of the mean cross-entropy of labelled examples


class Sizes(NamedTuple):
    """Widths of every network: pixels of an example, hidden units, latents."""

    features: int = 784
    hidden: int = 500
    latent: int = 50


MNIST = Sizes()


class Contender:
    """One implementation of a training step of M2, in float32.

    Its method ``step(x, *labelled)`` takes one optimisation step on unlabelled x ``(B, features)``, and on labelled
    examples and their classes if they are given.
    """

    warm_up = 1  # steps before a step takes its usual time

    def __init__(self, *, num_classes: int, device: str = "cpu", seed: int = 0, sizes: Sizes = MNIST) -> None:
        pyro.set_rng_seed(seed)
        self.num_classes, self.sizes, self.device = num_classes, sizes, torch.device(device)


class _TutorialNets(nn.Module):
    """Networks of the tutorial: the one-hot class is concatenated to the input, and all runs for every class."""

    def __init__(self, num_classes: int, sizes: Sizes) -> None:
        super().__init__()
        features, hidden, latent = sizes
        first, last = nn.Linear(features, hidden), nn.Linear(hidden, num_classes)
        self.encoder_y = nn.Sequential(first, nn.Softplus(), last, nn.Softmax(-1))
        self.encoder_z = nn.Sequential(nn.Linear(features + num_classes, hidden), nn.Softplus())
        self.loc, self.log_scale = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        first, last = nn.Linear(latent + num_classes, hidden), nn.Linear(hidden, features)
        self.decoder = nn.Sequential(first, nn.Softplus(), last, nn.Sigmoid())

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder_z(_concatenate(x, y))
        return self.loc(hidden), self.log_scale(hidden).exp()

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        return self.decoder(_concatenate(z, y))


def _concatenate(*parts: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class TutorialPyro(Contender):
    """Stock Pyro as in https://pyro.ai/examples/ss-vae.html, with today's Pyro and nothing tuned.

    Two ``SVI`` objects share one optimiser: ``TraceEnum_ELBO`` with the classes enumerated in parallel, and
    ``Trace_ELBO`` for the auxiliary loss of the classifier. As in the tutorial, both are stepped on every batch,
    labelled or not; on unlabelled examples the second one has no loss, yet Adam moves the weights by its momentum.
    Losses are sums over the batch; ``multiplier`` is the weight of the auxiliary loss.
    """

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

    def step(self, x: Tensor, *labelled: Tensor) -> None:
        self.step_on(x)
        if labelled:
            self.step_on(*labelled)

    def step_on(self, x: Tensor, y: Tensor | None = None) -> None:
        """Step both ``SVI`` objects on a batch of either kind; ``SVI`` reads each loss on the host."""
        one_hot = () if y is None else (F.one_hot(y, self.num_classes).to(x),)
        self.svi.step(x, *one_hot)
        self.auxiliary.step(x, *one_hot)


class _Networks(nn.Module):
    """Networks of M2 whose first layers compute W_x x once and add a vector for each class."""

    def __init__(self, num_classes: int, sizes: Sizes) -> None:
        super().__init__()
        features, hidden, latent = sizes
        self.classify_hidden, self.classify_out = nn.Linear(features, hidden), nn.Linear(hidden, num_classes)
        self.encode_x, self.encode_out = nn.Linear(features, hidden), nn.Linear(hidden, 2 * latent)
        self.decode_z, self.decode_out = nn.Linear(latent, hidden), nn.Linear(hidden, features)
        for name, inputs in (("encode_y", features), ("decode_y", latent)):
            bound = 1.0 / math.sqrt(inputs + num_classes)
            self.register_parameter(name, nn.Parameter(torch.empty(num_classes, hidden).uniform_(-bound, bound)))

    def classify(self, x: Tensor) -> Tensor:
        return self.classify_out(F.softplus(self.classify_hidden(x))).float()

    def encode(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.encode_x(x) + _look_up(self.encode_y, y))
        return self.encode_out(hidden).float().chunk(2, -1)

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return self.decode_out(F.softplus(self.decode_z(z) + _look_up(self.decode_y, y))).float()


def _look_up(weights: Tensor, y: Tensor | None) -> Tensor:
    """Return the vectors of classes ``(B,)``, or of every class, ``(K, 1, hidden)``, where y is not known."""
    return weights[:, None] if y is None else F.embedding(y, weights)


class HandWritten(Contender):
    """Plain PyTorch without Pyro: the same terms as J^α, with the exact sum over classes; the bound is in float32.

    With ``graph`` the whole step is captured as a CUDA graph at the first call and replayed from then on.
    """

    def __init__(self, *, graph: bool = False, bf16: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.graph, self.bf16 = graph, bf16
        self.nets = _Networks(self.num_classes, self.sizes).to(self.device)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=LEARNING_RATE, fused=True, capturable=graph)
        self._captured: torch.cuda.CUDAGraph | None = None
        self._static: tuple[Tensor, ...] = ()

    def cost(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return -E log p(x|y,z) + KL(q(z|x,y)‖p(z)), ``(B,)``, or ``(K, B)`` for every class where y is not known."""
        loc, log_scale = self.nets.encode(x, y)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + scale.square() - 1.0).sum(-1) - log_scale.sum(-1)
        logits = self.nets.decode(z, y)
        # As fast as binary_cross_entropy_with_logits on one core, and it keeps one large tensor less.
        return F.softplus(logits).sum(-1) - torch.linalg.vecdot(x, logits) + kl

    def unlabelled_bound(self, x: Tensor) -> Tensor:
        """Return U(x), ``(B,)``, in nats."""
        log_q = self.nets.classify(x).log_softmax(-1).T  # (K, B)
        return (log_q.exp() * (self.cost(x) + log_q)).sum(0) + math.log(self.num_classes)

    def labelled_bound(self, x: Tensor, y: Tensor) -> Tensor:
        """Return L(x, y), ``(B,)``, in nats."""
        return self.cost(x, y) + math.log(self.num_classes)

    def loss(self, x: Tensor, *labelled: Tensor) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per example."""
        total_size = NUM_LABELLED + NUM_UNLABELLED
        total = NUM_UNLABELLED / total_size * self.unlabelled_bound(x).mean()
        if labelled:
            total = total + NUM_LABELLED / total_size * self.labelled_bound(*labelled).mean()
            total = total + ALPHA * F.cross_entropy(self.nets.classify(labelled[0]), labelled[1])
        return total

    def step(self, x: Tensor, *labelled: Tensor) -> None:
        if not self.graph:
            self._update(x, *labelled)
            return
        if self._captured is None:
            self._captured = self._capture(x, *labelled)
        for static, given in zip(self._static, (x, *labelled), strict=True):
            static.copy_(given)
        self._captured.replay()

    def autocast(self) -> torch.autocast:
        # A captured step must not keep casts of weights beyond the step, so casts are never cached.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def _update(self, *batch: Tensor) -> None:
        with self.autocast():
            loss = self.loss(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _capture(self, *batch: Tensor) -> torch.cuda.CUDAGraph:
        self._static = tuple(part.clone() for part in batch)
        # The state of Adam, allocated in the first step, must exist before the capture starts.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update(*self._static)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            self._update(*self._static)
        return captured


class Ours(Contender):
    """This package: the step of ``fit``, with moving average and sums for the log, without the regularisers."""

    warm_up = 6  # the first steps are eager, then one is compiled or captured

    def __init__(self, enumeration: str = "exact", compile: str = "auto", bf16: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        features, hidden, latent = self.sizes
        options: dict[str, Any] = {"hidden_dims": (hidden,), "latent_dim": latent, "activation": "softplus"}
        self.module = M2((features,), self.num_classes, classifier="mlp", **options).to(self.device)
        sizes = {"num_labelled": NUM_LABELLED, "num_unlabelled": NUM_UNLABELLED}
        self.objective = SemiSupervisedELBO(self.module, **sizes, alpha=ALPHA, enumeration=enumeration)
        schedule = {"learning_rate": LEARNING_RATE, "kl_warmup": 0.0, "kl_peak": 1.0}
        precision = "bf16-mixed" if bf16 else "32-true"
        config = TrainingConfig(**schedule, compile=compile, device=str(self.device), precision=precision)
        # In the place of a stream of batches; a captured step copies the batch into its buffers.
        self._stream: Any = SimpleNamespace(resident=False, noise=torch.Generator(self.device), gather=lambda one: one)
        self._step = TrainingStep(self.objective, self._stream, config, make_fabric(config), total=1_000_000)
        self._taken = 0

    def loss(self, x: Tensor, *labelled: Tensor) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per example."""
        return self.objective(Batch(x, *(labelled or (None, None))))

    def step(self, x: Tensor, *labelled: Tensor) -> None:
        batch = Batch(x, *(labelled or (None, None)))
        self._stream.next_indices = lambda: batch
        self._step(self._taken)
        self._taken += 1
