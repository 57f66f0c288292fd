"""Implementations of the same training step of M2, with a common interface.

All have the widths of :class:`Sizes`, softplus activations, Bernoulli pixels, a uniform class prior, an MLP as
classifier, and Adam. A step is complete: bound, gradients, update. The loss is not read back to the host, except where
Pyro's ``SVI`` does so itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from contender import ALPHA, LEARNING_RATE, MNIST, NUM_LABELLED, NUM_UNLABELLED, Contender, Sizes, Unavailable
from torch import Tensor, nn
from torch.nn import functional as F
from tutorial import TutorialPyro

import pyro_ssvae
from pyro_ssvae.data import Batch
from pyro_ssvae.training.device import make_fabric
from pyro_ssvae.training.step import TrainingStep

__all__ = ["ALPHA", "MNIST", "Contender", "HandWritten", "Ours", "Pyroved", "Sizes", "TutorialPyro", "Unavailable"]


class Pyroved(Contender):
    """The semi-supervised VAE of the package ``pyroved`` with its trainer, without invariances.

    Its API fixes the scale of q(z|x,y) to a softplus where the others take an exponential; otherwise the computation is
    that of the tutorial.
    """

    precisions = ("fp32",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        try:
            import pyroved
        except ImportError as error:
            missing = error.name in (None, "pyroved")
            raise Unavailable("not installed: pip install pyroved" if missing else f"needs {error.name}") from error
        sizes, width = self.sizes, [self.sizes.hidden]
        networks = {"hidden_dim_e": width, "hidden_dim_d": width, "hidden_dim_cls": width, "activation": "softplus"}
        model = pyroved.models.ssiVAE(
            (sizes.features,), sizes.latent, self.num_classes, invariances=None, device=self.device, **networks
        )
        self.trainer = pyroved.trainers.auxSVItrainer(model, lr=LEARNING_RATE, device=self.device)

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Do what the trainer does with one batch of each kind."""
        self.trainer.compute_loss(x_unlabelled)
        if x_labelled is not None and y_labelled is not None:
            self.trainer.compute_loss(x_labelled, F.one_hot(y_labelled, self.num_classes).to(x_labelled))


class _Networks(nn.Module):
    """Networks of M2 whose first layers compute W_x x once and add a vector for each class."""

    def __init__(self, num_classes: int, sizes: Sizes) -> None:
        super().__init__()
        self.classify_hidden = nn.Linear(sizes.features, sizes.hidden)
        self.classify_out = nn.Linear(sizes.hidden, num_classes)
        self.encode_x = nn.Linear(sizes.features, sizes.hidden)
        self.encode_y = nn.Parameter(_class_weights(num_classes, sizes.features, sizes.hidden))
        self.encode_out = nn.Linear(sizes.hidden, 2 * sizes.latent)
        self.decode_z = nn.Linear(sizes.latent, sizes.hidden)
        self.decode_y = nn.Parameter(_class_weights(num_classes, sizes.latent, sizes.hidden))
        self.decode_out = nn.Linear(sizes.hidden, sizes.features)

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify_out(F.softplus(self.classify_hidden(x)))
        return logits.float()

    def encode(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.encode_x(x) + _look_up(self.encode_y, y))
        loc, log_scale = self.encode_out(hidden).float().chunk(2, -1)
        return loc, log_scale

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        logits: Tensor = self.decode_out(F.softplus(self.decode_z(z) + _look_up(self.decode_y, y)))
        return logits.float()


def _class_weights(num_classes: int, features: int, hidden: int) -> Tensor:
    bound = 1.0 / math.sqrt(features + num_classes)
    return torch.empty(num_classes, hidden).uniform_(-bound, bound)


def _look_up(weights: Tensor, y: Tensor | None) -> Tensor:
    """Return the vectors of classes ``(B,)``, or of every class, ``(K, 1, hidden)``, where y is not known."""
    return weights[:, None] if y is None else F.embedding(y, weights)


class HandWritten(Contender):
    """Plain PyTorch without Pyro: the same terms as J^α, with the exact sum over classes.

    Args:
        graph: Whether the whole step is captured as a CUDA graph at the first call and replayed from then on.
        **settings: Arguments of :class:`Contender`.

    Raises:
        Unavailable: With ``graph`` on another device than CUDA.
    """

    def __init__(self, *, graph: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if graph and self.device.type != "cuda":
            raise Unavailable("CUDA graphs need CUDA")
        self.graph = graph
        self.nets = _Networks(self.num_classes, self.sizes).to(self.device)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=LEARNING_RATE, fused=True, capturable=graph)
        self._captured: torch.cuda.CUDAGraph | None = None
        self._static: tuple[Tensor | None, ...] = ()

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

    def loss(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per example."""
        total_size = NUM_LABELLED + NUM_UNLABELLED
        total = NUM_UNLABELLED / total_size * self.unlabelled_bound(x_unlabelled).mean()
        if x_labelled is not None and y_labelled is not None:
            total = total + NUM_LABELLED / total_size * self.labelled_bound(x_labelled, y_labelled).mean()
            total = total + ALPHA * F.cross_entropy(self.nets.classify(x_labelled), y_labelled)
        return total

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one step; with ``graph`` the first call captures it, after three ordinary steps."""
        batch = (x_unlabelled, x_labelled, y_labelled)
        if not self.graph:
            self._update(*batch)
            return
        if self._captured is None:
            self._capture(batch)
        for static, given in zip(self._static, batch, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        assert self._captured is not None
        self._captured.replay()

    def _update(self, *batch: Any) -> None:
        with self.autocast():
            loss = self.loss(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _capture(self, batch: tuple[Tensor | None, ...]) -> None:
        self._static = tuple(None if part is None else part.clone() for part in batch)
        # The state of Adam, allocated in the first step, must exist before the capture starts.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update(*self._static)
        torch.cuda.current_stream().wait_stream(side)
        self._captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._captured):
            self._update(*self._static)


class _FixedBatch:
    """Returns the batch of the benchmark, in the place of a stream of batches."""

    resident = False  # the batch is copied into the buffers of a captured step

    def __init__(self, device: torch.device) -> None:
        self.batch = Batch(None, None, None)
        self.noise = torch.Generator(device)

    def next_indices(self) -> Batch:
        return self.batch

    def gather(self, batch: Batch) -> Batch:
        return batch


class Ours(Contender):
    """This package: the step of ``fit``, with moving average and sums for the log, without the two extra losses.

    Args:
        enumeration: Sum over the classes of unlabelled examples, ``"exact"`` or ``"top-k"``.
        compile: Argument of :class:`pyro_ssvae.TrainingConfig`.
        **settings: Arguments of :class:`Contender`.
    """

    warm_up = 6  # the first steps are eager, then one is compiled or captured

    def __init__(self, *, enumeration: str = "exact", compile: str = "auto", **settings: Any) -> None:
        super().__init__(**settings)
        self.module = pyro_ssvae.M2(
            (self.sizes.features,),
            self.num_classes,
            hidden_dims=(self.sizes.hidden,),
            latent_dim=self.sizes.latent,
            activation="softplus",
            classifier="mlp",
        ).to(self.device)
        self.objective = pyro_ssvae.SemiSupervisedELBO(
            self.module, num_labelled=NUM_LABELLED, num_unlabelled=NUM_UNLABELLED, alpha=ALPHA, enumeration=enumeration
        )
        precision = "bf16-mixed" if self.precision == "bf16" else "32-true"
        constant_kl: dict[str, Any] = {"kl_warmup": 0.0, "kl_peak": 1.0}
        config = pyro_ssvae.TrainingConfig(
            learning_rate=LEARNING_RATE, compile=compile, device=str(self.device), precision=precision, **constant_kl
        )
        self._stream: Any = _FixedBatch(self.device)
        self._step = TrainingStep(self.objective, self._stream, config, make_fabric(config), total=1_000_000)
        self._taken = 0

    def loss(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per example."""
        loss: Tensor = self.objective(Batch(x_unlabelled, x_labelled, y_labelled))
        return loss

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one step."""
        self._stream.batch = Batch(x_unlabelled, x_labelled, y_labelled)
        self._step(self._taken)
        self._taken += 1
