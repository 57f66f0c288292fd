"""Estimators without classes: M1 as a transformer, DDGM as an unnormalised density."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyro_ssvae._arrays import as_examples
from pyro_ssvae._configurable import build, describe
from pyro_ssvae._warnings import warn
from pyro_ssvae.estimators.base import ONE_PASS, PYRO_LOCK, Array, DeepEstimator, GenerativeEstimator, parameters
from pyro_ssvae.evaluation.metrics import diagnose_latents
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.generation import mean_of
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.objectives.bounds import UnsupervisedELBO
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.presets import choose_ddgm

_LEAST_WIDTH = 0.25  # standard deviations between the 10 % and 90 % quantiles of a column; 2.56 of a Gaussian


@parameters
class M1Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, GenerativeEstimator):
    """M1, a variational autoencoder, as a transformer: the means of q(z|x) are features for another estimator.

    Args:
        latent_dim: Number of latents; ``None``: a quarter of the columns, from 2 to 10, and 50 for images.
        hidden_dims: Hidden widths; ``None``: (128,), and (500,) for images.
        likelihood: As for :class:`M2Classifier`.
        max_steps: Length of training in steps; ``None``: 64 passes, 500 to 3,000 steps.
        batch_size: Examples per step.
        learning_rate: Peak learning rate of Adam.
        max_time: Longest time of training in seconds.
        warm_start: Whether :meth:`fit` goes on from the weights of an earlier one, whose sizes and likelihood stay.
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

    def fit(self, X: ArrayLike, y: Any = None) -> M1Transformer:
        """Train on examples ``(N, D)``, or images ``(N, C, H, W)``, as for :class:`M2Classifier`; ``y`` is not used.

        A warning says if no latent varies between examples (posterior collapse).
        """
        self._check_parameters()
        return self._fit(X, self.warm_start and hasattr(self, "model_"))

    def partial_fit(self, X: ArrayLike, y: Any = None) -> M1Transformer:
        """Train for one pass over examples, starting from the weights of earlier calls."""
        self._check_parameters()
        return self._fit(X, hasattr(self, "model_"), **ONE_PASS)

    def _fit(self, X: ArrayLike, again: bool, **changes: Any) -> M1Transformer:
        rows = self._check_rows(X, reset=not again, min_rows=2)
        data = self._as_data(rows)
        with PYRO_LOCK:
            model = getattr(self, "model_", None) or M1.for_data(data, **self._sizes(rows))
            self._train(UnsupervisedELBO.for_data(model, data), data, **changes)
            if not changes:
                diagnose_latents(model, data)
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Return the means of q(z|x), shape ``(N, latent_dim)``."""
        return self._apply(lambda model, x: model.transform(x), X)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Return the means of p(x|z) for latents ``(N, latent_dim)``, in the units of the training examples."""
        check_is_fitted(self, "model_")
        latents = as_examples(X, "X")
        if latents.shape[1:] != (self.model_.latent_dim,):
            raise ValueError(f"X has shape {tuple(latents.shape)}; latents (N, {self.model_.latent_dim}) are needed.")
        with torch.no_grad():
            decoded = self.model_.eval().decode(latents.to(next(self.model_.parameters())))
            return self._in_units_of_input(mean_of(decoded))

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean of log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Array:
        """Return generated examples (means of p(x|z))."""
        with self._sampling(n_samples) as model:
            return self._in_units_of_input(model.generate(n_samples))

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.latent_dim)


@parameters
class DDGMDensity(DensityMixin, DeepEstimator):
    """DDGM (Kim & Bengio 2016) as a density up to its normalising constant, and a generator of samples from it.

    Columns are numbers without missing values; encode words, by ``OneHotEncoder`` say. For the energy they are
    standardised, and images whose values leave [0, 1] are brought to it, unless they are of 8 bits, which are divided
    by 255. The constant differs between fits: compare scores of examples under one fit, and no scores of several fits,
    as ``GridSearchCV`` does.

    Args:
        latent_dim: Number of latents of the generator; ``None``: 4 for up to 16 columns, else 32.
        max_steps: Length of training in steps; ``None`` is 12,000 for tables, 8,000 for images, 6,000 for photographs
            (in colour, or larger than 32 x 32 pixels).
        batch_size: Examples per step; ``None`` is 512 for tables, 128 for images, 64 for photographs.
        learning_rate: Peak learning rate of Adam; ``None`` is 0.001, and 0.0005 for photographs.
        max_time: Longest time of training in seconds.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        random_state: Seed or ``RandomState`` of weights and training.
        verbose: Whether to show progress.
        callbacks: Functions that are called at every evaluation with the model and a dictionary of metrics.

    Attributes:
        model_: The trained :class:`pyro_ssvae.DDGM`, of ``(X - mean_) / spread_``.
        mean_: What was subtracted from training examples: the means of columns, a number for images.
        spread_: What they were divided by: standard deviations, 1 for constant columns; a number for images.
        history_: One dictionary of metrics per evaluation.
        n_iter_: Steps done.
    """

    max_steps: int | None = 2000
    batch_size: int | None = None  # type: ignore[assignment]
    learning_rate: float | None = None  # type: ignore[assignment]
    _allow_missing = False

    def fit(self, X: ArrayLike, y: Any = None) -> DDGMDensity:
        """Train on examples ``(N, D)``, or images ``(N, C, H, W)``; ``y`` is not used."""
        self._check_parameters()
        rows = self._check_rows(X, reset=True, min_rows=2)
        mean: Any = 0.0
        spread: Any = 1.0
        if rows.ndim == 2:
            mean, spread = rows.mean(0), rows.std(0)
            self._warn_about_tails(rows, spread)
        elif rows.dtype != np.uint8 and not (rows.min() >= 0.0 and rows.max() <= 1.0):
            mean, spread = rows.min(), np.ptp(rows)
        self.mean_, self.spread_ = mean, spread + (spread == 0)
        data = self._as_data(self._standardise(rows))
        preset = choose_ddgm(data.event_shape)
        if self._offsets is not None:  # which were subtracted from the rows
            self.mean_, self._offsets = self.mean_ + self._offsets, None
        given = {name: getattr(self, name) for name in ("max_steps", "batch_size", "learning_rate")}
        ours = preset.training | {name: value for name, value in given.items() if value is not None}
        ours |= {"evaluate_every": None, "batch_size": min(ours["batch_size"], len(rows))}
        with PYRO_LOCK:
            model = DDGM.for_data(data, latent_dim=self.latent_dim)
            self._train(EnergyObjective.for_data(model, data, **preset.objective), data, **ours)
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Return -E(x) in nats, shape ``(N,)``: log p(x) up to a constant."""
        return self._apply(lambda model, x: -model.energy(x), X)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean of -E(x) in nats, not comparable with that of another fit."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Array:
        """Return samples of the generator, in the units of the training examples."""
        with self._sampling(n_samples) as model:
            rows = model.sample(n_samples).cpu().numpy() * model.data_scale
            return self._move_back(rows * self.spread_ + self.mean_)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling; the energy has normalised weights, which torch pickles as tensors only."""
        state = dict(super().__getstate__())
        if model := state.pop("model_", None):
            state["_saved_model"] = describe(model), model.state_dict(), model.data_scale
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and build the model anew."""
        saved = state.pop("_saved_model", None)
        super().__setstate__(state)
        if saved is not None:
            self.model_ = build(saved[0])
            self.model_.load_state_dict(saved[1])
            self.model_.data_scale = saved[2]

    def _warn_about_tails(self, rows: Array, spread: Array) -> None:
        low, high = np.quantile(rows, [0.1, 0.9], axis=0)
        heavy = np.flatnonzero((high > low) & (high - low < _LEAST_WIDTH * spread))
        if len(heavy):
            names = getattr(self, "feature_names_in_", range(rows.shape[1]))
            warn(
                f"Column {', '.join(str(names[column]) for column in heavy[:5])}{', ...' if len(heavy) > 5 else ''}: "
                f"80 % of the values lie within {_LEAST_WIDTH:g} standard deviations, as a few are far larger, and the "
                "energy hardly tells them apart. Transform such columns first, by numpy.log or "
                "QuantileTransformer(output_distribution='normal')."
            )

    def _standardise(self, rows: Array) -> Array:
        if np.ndim(self.mean_) == 0 and (self.mean_, self.spread_) == (0.0, 1.0):  # images, possibly of 8 bits
            return rows
        return np.asarray((rows - self.mean_) / self.spread_)

    def _check_rows(self, X: ArrayLike, *, reset: bool, min_rows: int = 1) -> Array:
        rows = super()._check_rows(X, reset=reset, min_rows=min_rows)
        return rows if reset else self._standardise(rows)
