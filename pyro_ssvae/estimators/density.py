"""DDGM as an unnormalised density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike
from sklearn.base import DensityMixin

from pyro_ssvae._configurable import build, describe
from pyro_ssvae.estimators.base import Array, DeepEstimator
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_TOY

__all__ = ["DDGMDensity"]


class DDGMDensity(DensityMixin, DeepEstimator):
    """DDGM (Kim & Bengio 2016) as a density up to its normalising constant, and a generator of samples from it.

    Columns are standardised for the energy.

    Args:
        latent_dim: Number of latents of the generator; ``None``: 4 for up to 16 columns, else 32.
        max_steps: Length of training in steps.
        batch_size: Examples per step; ``None`` is 512 for tables, 128 for images.
        learning_rate: Peak learning rate of Adam.
        max_time: Longest time of training in seconds.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        random_state: Seed or ``RandomState`` of weights and training.
        verbose: Whether to show progress.
        callbacks: Functions that are called at every evaluation with the model and a dictionary of metrics.

    Attributes:
        model_: The trained :class:`pyro_ssvae.DDGM`.
        history_: One dictionary of metrics per evaluation.
        n_iter_: Steps done.
    """

    _allow_missing = False

    def __init__(
        self,
        *,
        latent_dim: int | None = None,
        max_steps: int | None = 2000,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        max_time: float | None = None,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Sequence[Callable[[Any, dict[str, Any]], None]] | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_time = max_time
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def fit(self, X: ArrayLike, y: Any = None) -> DDGMDensity:
        """Train on examples ``(N, D)``, or images ``(N, C, H, W)``; ``y`` is not used."""
        self._check_parameters()
        rows = self._check_rows(X, reset=True, min_rows=2)
        preset = DDGM_TOY if rows.ndim == 2 else DDGM_IMAGES
        self.mean_, self.spread_ = 0.0, 1.0
        if rows.ndim == 2:
            self.mean_, spread = rows.mean(0), rows.std(0)
            self.spread_ = spread + (spread == 0)
        data = self._as_data(self._standardise(rows))
        model = DDGM.for_data(data, latent_dim=self.latent_dim)
        ours = {**preset.training, "max_steps": self.max_steps or preset.training["max_steps"]}
        ours |= {"learning_rate": self.learning_rate, "evaluate_every": None}
        ours["batch_size"] = min(self.batch_size or preset.training["batch_size"], len(rows))
        self._train(EnergyObjective.for_data(model, data, **preset.objective), data, **ours)
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Return -E(x) in nats, shape ``(N,)``: log p(x) of the standardised columns up to a constant."""
        return self._apply(lambda model, x: -model.energy(x), X)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean of -E(x) in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Array:
        """Return samples of the generator, in the units of the training examples."""
        with self._sampling() as model:
            return self._in_units_of_input(model.sample(n_samples)) * self.spread_ + self.mean_

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

    def _standardise(self, rows: Array) -> Array:
        return rows if rows.ndim > 2 else (rows - self.mean_) / self.spread_

    def _check_rows(self, X: ArrayLike, *, reset: bool, min_rows: int = 1) -> Array:
        rows = super()._check_rows(X, reset=reset, min_rows=min_rows)
        return rows if reset else self._standardise(rows)
