"""M1 as a transformer: latents as features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyro_ssvae._arrays import as_examples
from pyro_ssvae.estimators.base import ONE_PASS, Array, DeepEstimator
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO

__all__ = ["M1Transformer"]


class M1Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DeepEstimator):
    """M1, a variational autoencoder, as a transformer: the means of q(z|x) are features for another estimator.

    Args:
        latent_dim: Number of latents; ``None``: a quarter of the columns, from 2 to 10, and 50 for images.
        hidden_dims: Hidden widths; ``None``: (128,), and (500,) for images.
        likelihood: As for :class:`M2Classifier`.
        max_steps: Length of training in steps; ``None``: 64 passes, 500 to 3,000 steps.
        batch_size: Examples per step.
        learning_rate: Peak learning rate of Adam.
        max_time: Longest time of training in seconds.
        warm_start: Whether :meth:`fit` goes on from the weights of an earlier one.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        random_state: Seed or ``RandomState`` of weights and training.
        verbose: Whether to show progress.
        callbacks: Functions that are called at every evaluation with the model and a dictionary of metrics.

    Attributes:
        model_: The trained :class:`pyro_ssvae.M1`.
        likelihood_: How many columns follow which distribution, in words.
        categories_: The categories of columns of words, by the position of the column.
        history_: One dictionary of metrics per evaluation.
        n_iter_: Steps done.
    """

    def __init__(
        self,
        *,
        latent_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        likelihood: Any = "auto",
        max_steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        max_time: float | None = None,
        warm_start: bool = False,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Sequence[Callable[[Any, dict[str, Any]], None]] | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden_dims = hidden_dims
        self.likelihood = likelihood
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_time = max_time
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def fit(self, X: ArrayLike, y: Any = None) -> M1Transformer:
        """Train on examples ``(N, D)``, or images ``(N, C, H, W)``, as for :class:`M2Classifier`; ``y`` is not used."""
        self._check_parameters()
        return self._fit(X, self.warm_start and hasattr(self, "model_"))

    def partial_fit(self, X: ArrayLike, y: Any = None) -> M1Transformer:
        """Train for one pass over examples, starting from the weights of earlier calls."""
        self._check_parameters()
        return self._fit(X, hasattr(self, "model_"), **ONE_PASS)

    def _fit(self, X: ArrayLike, again: bool, **changes: Any) -> M1Transformer:
        rows = self._check_rows(X, reset=not again, min_rows=2)
        data = self._as_data(rows)
        model = self._previous(again) or M1.for_data(data, **self._sizes(rows))
        self._train(UnsupervisedELBO.for_data(model, data), data, **changes)
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Return the means of q(z|x), shape ``(N, latent_dim)``."""
        return self._apply(lambda model, x: model.transform(x), X)

    def impute(self, X: ArrayLike) -> Array:
        """Return a table with its missing values filled in: by their posterior mean, or most probable category.

        Observed values are returned as they are, except for categories that were not seen in training, which count as
        missing. The array is of type ``object`` if there are columns of words.
        """
        return self._impute(X)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Return the means of p(x|z) for latents ``(N, latent_dim)``, in the units of the training examples."""
        check_is_fitted(self, "model_")
        latents = as_examples(X, "X")
        if latents.shape[1:] != (self.model_.latent_dim,):
            raise ValueError(f"X has shape {tuple(latents.shape)}; latents (N, {self.model_.latent_dim}) are needed.")
        with torch.no_grad():
            return self._in_units_of_input(self.model_.eval().decode(latents.to(next(self.model_.parameters()))).mean)

    def score_samples(self, X: ArrayLike, num_samples: int = 100) -> Array:
        """Return estimates of log p(x) in nats, shape ``(N,)``, from ``num_samples`` draws of z."""
        return self._log_likelihood(X, num_samples)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean of log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Array:
        """Return generated examples (means of p(x|z))."""
        with self._sampling() as model:
            return self._in_units_of_input(model.generate(n_samples))

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.latent_dim)
