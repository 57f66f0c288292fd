"""What every objective shares: a module, the rows it stands for, the weight of the KL of z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_ssvae.data import Batch
from pyro_ssvae.objectives.handlers import GlobalSites, ScaleSites

__all__ = ["Objective", "PyroFunction"]

PyroFunction = Callable[..., Any]


class Objective(nn.Module):
    """A bound or loss as a module: call it with a batch, get one scalar to minimise, in nats per datum.

    Args:
        module: The module that owns the networks. Unless functions are given, the loss uses what its
            ``training_functions()`` returns, if it has this method, and else its ``model`` and ``guide``, which
            evaluation always uses.
        num_labelled: Number of labelled training rows.
        num_unlabelled: Number of unlabelled training rows.
        model: A function to use instead of ``module.model``.
        guide: Likewise, instead of ``module.guide``.

    Raises:
        ValueError: For negative numbers of rows, or no rows at all.

    Attributes:
        latest: The terms of the last call, detached, by name.
        elbo: ``"static"``, or ``"stock"`` where steps must ask the device questions.
        bound_weight: Factor of the bounds; without them there is nothing to say about densities.
        peaks_kl: Whether the KL of z may be weighed above 1 by default, to press the class out of the latents.
    """

    elbo: str = "static"
    bound_weight: float = 1.0
    peaks_kl: bool = True
    _kl_weight: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        num_labelled: int,
        num_unlabelled: int,
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
    ) -> None:
        super().__init__()
        if min(num_labelled, num_unlabelled) < 0 or num_labelled + num_unlabelled == 0:
            raise ValueError(
                f"num_labelled={num_labelled} and num_unlabelled={num_unlabelled} must be non-negative, not both zero."
            )
        self.module = module
        self.num_labelled = num_labelled
        self.num_unlabelled = num_unlabelled
        self.latest: dict[str, Tensor] = {}
        self._functions = {"model": model, "guide": guide}
        self._validated = False
        # A tensor, so that a recorded step follows it; without dimensions, so that it promotes nothing to float64.
        self.register_buffer("_kl_weight", torch.ones((), dtype=torch.float64), persistent=False)
        self._kl_weight_value = 1.0  # the same for Python, which must not ask the device

    @property
    def kl_weight(self) -> float:
        """Factor of log p(z) and log q(z|·)."""
        return self._kl_weight_value

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        if value != self._kl_weight_value:
            self._kl_weight.fill_(value)
            self._kl_weight_value = float(value)

    @property
    def num_rows(self) -> int:
        """Number of training rows N."""
        return self.num_labelled + self.num_unlabelled

    @property
    def regularisers(self) -> list[str]:
        """Names of the terms beyond the paper's objective, for results."""
        return []

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        raise NotImplementedError(f"{type(self).__name__} must define config() -> dictionary.")

    @property
    def model(self) -> PyroFunction:
        """The generative function in use."""
        return self._function("model")

    @property
    def guide(self) -> PyroFunction:
        """The recognition function in use."""
        return self._function("guide")

    def _function(self, name: str) -> PyroFunction:
        given = self._functions[name]
        function: PyroFunction = getattr(self.module, name) if given is None else given
        return function

    def training_functions(self) -> tuple[PyroFunction, PyroFunction]:
        """Return the model and guide functions of the loss."""
        own = getattr(self.module, "training_functions", None)
        given = any(self._functions[name] is not None for name in ("model", "guide"))
        model, guide = (self.model, self.guide) if given or own is None else own()
        return model, guide

    def forward(self, batch: Batch) -> Tensor:
        """Return the objective, to be minimised.

        Args:
            batch: Unlabelled rows ``(B_u, *event_shape)`` and labelled rows ``(B_l, *event_shape)`` with classes
                ``(B_l,)``; either side may be ``None``.

        Returns:
            A scalar in nats per datum, an unbiased estimate of its value on all rows.

        Raises:
            ValueError: If the batch is empty.
        """
        batch = Batch(*batch)
        if batch.x_unlabelled is None and batch.x_labelled is None:
            raise ValueError("The batch holds neither unlabelled nor labelled rows.")
        # Pyro's checks of shapes and supports read tensors back to the host: once is enough.
        with pyro.validation_enabled(not self._validated):
            loss = self._loss(batch)
        self._validated = True
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _loss(batch) -> scalar.")

    def problem(self, row: dict[str, Any]) -> str | None:
        """Return why training should not go on, in words, judged by what an evaluation found; ``None`` if it should.

        Args:
            row: What ``metrics.csv`` says of the evaluation.
        """
        return None

    @property
    def doubtful(self) -> bool:
        """Whether the last evaluation found signs of trouble, so that neither checkpoint nor model is overwritten."""
        return False

    def bound(self, elbo: TraceEnum_ELBO, shared: GlobalSites, *rows: Tensor | None, size: int) -> Tensor:
        """Return the negative bound of ``size`` rows, estimated from a minibatch, in nats (a sum, not a mean)."""
        weigh = ScaleSites(("z",), self._kl_weight)
        model, guide = (shared(weigh(function)) for function in self.training_functions())
        loss: Tensor = elbo.differentiable_loss(model, guide, *rows, size=size)
        return loss

    def unlabelled_bound(self, x: Tensor) -> float:
        """Return the mean of the negative bound over rows, in nats: without labels and without global terms.

        Args:
            x: Rows with shape ``(B, *event_shape)``.
        """
        local = GlobalSites(score=False)
        total: float = self._evaluation_elbo().loss(local(self.model), local(self.guide), x)
        return total / x.shape[0]

    def _evaluation_elbo(self) -> TraceEnum_ELBO:
        """Return the bound of rows under evaluation: exact, one draw."""
        raise NotImplementedError(f"{type(self).__name__} must define _evaluation_elbo().")
