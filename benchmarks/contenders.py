"""What a training step of M2 is timed against: five implementations of the same step, with a common face.

All have the widths of :class:`Sizes`, softplus activations, Bernoulli pixels, a uniform class prior, an MLP as
classifier, and Adam. A step is a full one: bound, gradients, update. The loss is not read back to the host, except
where Pyro's ``SVI`` does so by itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from contender import ALPHA, LEARNING_RATE, MNIST, NUM_LABELLED, NUM_UNLABELLED, Contender, Sizes, Unavailable
from torch import Tensor, nn
from torch.nn import functional as F
from tutorial import TutorialPyro, only_fp32

import pyro_ssvae
from pyro_ssvae.data import Batch
from pyro_ssvae.training.device import make_fabric
from pyro_ssvae.training.step import TrainingStep

__all__ = ["ALPHA", "Contender", "HandWritten", "Ours", "Pyroved", "Sizes", "TutorialPyro", "Unavailable"]


class Pyroved(Contender):
    """The semi-supervised VAE of the package ``pyroved`` with its trainer, without invariances.

    One hidden layer of each network, as here. Its API fixes the scale of q(z|x,y) to a softplus where the others take
    an exponential; all else is the tutorial's computation.
    """

    def __init__(self, *, sizes: Sizes = MNIST, **settings: Any) -> None:
        super().__init__(**settings)
        only_fp32(self)
        try:
            import pyroved
        except ImportError as error:
            missing = error.name in (None, "pyroved")
            raise Unavailable("not installed: pip install pyroved" if missing else f"needs {error.name}") from error
        width = [sizes.hidden]
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


# Plain PyTorch, by someone who knows the model and wants it fast.


class _Networks(nn.Module):
    """The networks of M2 with their first layers factored: W_x x is computed once, classes are rows to add."""

    def __init__(self, num_classes: int, sizes: Sizes) -> None:
        super().__init__()
        self.classify_hidden = nn.Linear(sizes.features, sizes.hidden)
        self.classify_out = nn.Linear(sizes.hidden, num_classes)
        self.encode_x = nn.Linear(sizes.features, sizes.hidden)
        self.encode_y = nn.Parameter(_class_rows(num_classes, sizes.features, sizes.hidden))
        self.encode_out = nn.Linear(sizes.hidden, 2 * sizes.latent)
        self.decode_z = nn.Linear(sizes.latent, sizes.hidden)
        self.decode_y = nn.Parameter(_class_rows(num_classes, sizes.latent, sizes.hidden))
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


def _class_rows(num_classes: int, features: int, hidden: int) -> Tensor:
    bound = 1.0 / math.sqrt(features + num_classes)
    return torch.empty(num_classes, hidden).uniform_(-bound, bound)


def _look_up(rows: Tensor, y: Tensor | None) -> Tensor:
    """Return the rows of classes ``(B,)``, or of every class, ``(K, 1, hidden)``, where y is not known."""
    return rows[:, None] if y is None else F.embedding(y, rows)


class HandWritten(Contender):
    """Plain PyTorch without Pyro: the same terms as J^α, with the exact sum over classes.

    Args:
        graph: Whether the whole step is recorded as a CUDA graph at the first call and replayed from then on.
        sizes: Of the networks.
        **settings: Those of :class:`Contender`.

    Raises:
        Unavailable: If a graph is asked for without CUDA.
    """

    def __init__(self, *, graph: bool = False, sizes: Sizes = MNIST, **settings: Any) -> None:
        super().__init__(**settings)
        if graph and self.device.type != "cuda":
            raise Unavailable("CUDA graphs need CUDA")
        self.graph = graph
        self.any_batch_size = not graph
        self.nets = _Networks(self.num_classes, sizes).to(self.device)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=LEARNING_RATE, fused=True, capturable=graph)
        self._recorded: torch.cuda.CUDAGraph | None = None
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
        """Return U(x) of each row, ``(B,)``, in nats."""
        log_q = self.nets.classify(x).log_softmax(-1).T  # (K, B)
        return (log_q.exp() * (self.cost(x) + log_q)).sum(0) + math.log(self.num_classes)

    def labelled_bound(self, x: Tensor, y: Tensor) -> Tensor:
        """Return L(x, y) of each row, ``(B,)``, in nats."""
        return self.cost(x, y) + math.log(self.num_classes)

    def loss(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per datum."""
        rows = NUM_LABELLED + NUM_UNLABELLED
        total = NUM_UNLABELLED / rows * self.unlabelled_bound(x_unlabelled).mean()
        if x_labelled is not None and y_labelled is not None:
            total = total + NUM_LABELLED / rows * self.labelled_bound(x_labelled, y_labelled).mean()
            total = total + ALPHA * F.cross_entropy(self.nets.classify(x_labelled), y_labelled)
        return total

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one step; with ``graph=True`` the first call records it, after three ordinary steps to warm up."""
        batch = (x_unlabelled, x_labelled, y_labelled)
        if not self.graph:
            self._update(*batch)
            return
        if self._recorded is None:
            self._record(batch)
        for static, given in zip(self._static, batch, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        assert self._recorded is not None
        self._recorded.replay()

    def _update(self, *batch: Any) -> None:
        with self.autocast():
            loss = self.loss(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _record(self, batch: tuple[Tensor | None, ...]) -> None:
        self._static = tuple(None if part is None else part.clone() for part in batch)
        # What is built at the first step, the state of Adam among it, must exist before the recording starts.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update(*self._static)
        torch.cuda.current_stream().wait_stream(side)
        self._recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._recorded):
            self._update(*self._static)


class _Given:
    """Hands the batch of the benchmark to a training step, in the place of a stream."""

    resident = False  # rows come as they are, and are copied into the buffers of a captured step

    def __init__(self, device: torch.device) -> None:
        self.batch = Batch(None, None, None)
        self.noise = torch.Generator(device)

    def next_indices(self) -> Batch:
        return self.batch

    def gather(self, rows: Batch) -> Batch:
        return rows


class Ours(Contender):
    """This package: the whole step that ``fit`` takes, with moving average and sums for the log, without add-ons.

    Args:
        enumeration: How unlabelled rows sum over classes, ``"exact"`` or ``"top-k"``.
        compile: How steps run, as in :class:`pyro_ssvae.TrainingConfig`; ``"auto"`` is that of a long schedule.
        sizes: Of the networks.
        **settings: Those of :class:`Contender`.
    """

    warm_up = 6  # the first steps run eagerly, then one is recorded and compiled, or captured

    def __init__(
        self, *, enumeration: str = "exact", compile: str = "auto", sizes: Sizes = MNIST, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.module = pyro_ssvae.M2(
            (sizes.features,),
            self.num_classes,
            hidden_dims=(sizes.hidden,),
            latent_dim=sizes.latent,
            activation="softplus",
            classifier="mlp",
        ).to(self.device)
        self.objective = pyro_ssvae.SemiSupervisedELBO(
            self.module, num_labelled=NUM_LABELLED, num_unlabelled=NUM_UNLABELLED, alpha=ALPHA, enumeration=enumeration
        )
        config = pyro_ssvae.TrainingConfig(
            learning_rate=LEARNING_RATE,
            kl_warmup=0.0,
            kl_peak=1.0,
            compile=compile,
            device=str(self.device),
            precision="bf16-mixed" if self.precision == "bf16" else "32-true",
        )
        self._given = _Given(self.device)
        stream: Any = self._given
        self._step = TrainingStep(self.objective, stream, config, make_fabric(config), total=1_000_000)
        self._taken = 0

    def loss(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> Tensor:
        """Return J^α / N, estimated from a minibatch, in nats per datum."""
        loss: Tensor = self.objective(Batch(x_unlabelled, x_labelled, y_labelled))
        return loss

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one step."""
        self._given.batch = Batch(x_unlabelled, x_labelled, y_labelled)
        self._step(self._taken)
        self._taken += 1
