"""Semi-supervised classifiers: M2, and M2 on the latents of M1."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.validation import check_consistent_length

from pyro_ssvae import M1, M1M2, M2, fit
from pyro_ssvae._arrays import as_array
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.distributions import FixedClassPrior
from pyro_ssvae.estimators.base import (
    ONE_PASS,
    PYRO_LOCK,
    Array,
    GenerativeEstimator,
    encode_targets,
    parameters,
    select_known,
    sort_classes,
)
from pyro_ssvae.estimators.estimates import estimate_shares, estimate_temperature, least_temperature, shrink_shares
from pyro_ssvae.evaluation.metrics import warn_about_class_prior
from pyro_ssvae.objectives import Objective
from pyro_ssvae.objectives.bounds import SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.objectives.regularisers import CONSISTENCY_WEIGHT, TABLE_ALIGNMENT, exchange_unpredicted
from pyro_ssvae.presets import M1_BELOW, STACK_PURE

_FREQUENCY_STEPS, _TEMPERATURE_STEPS = 500, 300  # of the short fits that estimate class frequencies and temperature
_FOLDS = 3  # of the estimate of the temperature


@parameters
class M2Classifier(ClassifierMixin, GenerativeEstimator):
    """M2 (Kingma et al. 2014) as a classifier that also learns from unlabelled examples, marked by -1 in ``y``.

    Args:
        latent_dim: Number of latents; ``None``: a quarter of the columns, from 2 to 10, and 50 for images.
        hidden_dims: Hidden widths; ``None``: (128,), and (500,) for images.
        likelihood: ``"auto"`` chooses one for each column by its values; or a name or object of
            :mod:`pyro_ssvae.distributions`.
        class_prior: ``"auto"`` estimates the class frequencies of a table, first by simple classifiers of the labelled
            rows, then by a short fit of M2, and moves them towards equal ones, the more the less certain they are; of
            more than 20,000 rows the classifiers see a sample, and more than 500 classes have equal ones. Or
            ``"uniform"``, ``"map"`` (learned), ``"dirichlet"`` (inferred), or known probabilities, one for each of the
            sorted classes.
        alpha: Weight of the mean cross-entropy of labelled examples.
        bound_weight: Weight of the bounds; with 0 there is no generative model, only a classifier. ``None`` is the
            default of :meth:`SemiSupervisedELBO.for_data`: 1, and less for images with grey values or in colour, and
            for tables with fewer rows than columns.
        consistency_weight: Weight of the consistency of predictions: a confident one must also hold when a fifth of
            the columns (with ``class_prior="auto"`` but for those that others predict) have values of other examples;
            of images: when they are augmented. On tables it is multiplied by min(1, 5 K / L), with L labels of K
            classes. If it and ``bound_weight`` are 0, the classifier learns from labels alone.
        max_steps: Length of training in steps; ``None``: 64 passes over the unlabelled examples, 500 to 3,000 steps.
        batch_size: Unlabelled examples per step.
        learning_rate: Peak learning rate of Adam.
        max_time: Longest time of each stage of training in seconds, of which the estimate of class frequencies takes
            at most about half, and that of the temperature what training leaves; ``None`` for no limit.
        classes: All classes, where some may have no label in ``y``.
        n_classes: Number of clusters, where ``y`` has no label at all.
        warm_start: Whether :meth:`fit` goes on from the weights of an earlier one, whose sizes and likelihood stay.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        random_state: Seed or ``RandomState`` of weights and training.
        verbose: Whether to show progress.
        callbacks: Functions that are called at every evaluation with the model and a dictionary of metrics.

    Attributes:
        classes_: Sorted classes, shape ``(K,)``.
        model_: The trained :class:`pyro_ssvae.M2`.
        likelihood_: How many columns follow which distribution, in words.
        categories_: The categories of columns of words, by the position of the column.
        transduction_: Predicted classes of the training examples, shape ``(N,)``; given labels are kept.
        history_: One dictionary of metrics per evaluation.
        n_iter_: Steps done.
        temperature_: That of the predicted probabilities: 1.6 with five or fewer labels a class, nearer to 1 with more,
            and more than that for tables where short fits, each without a third of the labels, predict these worse than
            they claim.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> y_few = y.copy()
        >>> y_few[np.arange(150) % 10 != 0] = -1
        >>> M2Classifier(max_steps=300, random_state=0).fit(X, y_few).score(X, y) > 0.8
        True
    """

    class_prior: Any = "auto"
    alpha: float = 10.0
    bound_weight: float | None = None
    consistency_weight: float = CONSISTENCY_WEIGHT
    classes: ArrayLike | None = None
    n_classes: int | None = None

    # Training.

    def fit(self, X: ArrayLike, y: ArrayLike) -> M2Classifier:
        """Train on labelled and unlabelled examples.

        Args:
            X: Examples with shape ``(N, D)``, or images ``(N, C, H, W)``. Columns of a table may hold words
                (categories) and missing values: NaN, ``None`` or ``""``.
            y: Labels with shape ``(N,)``; -1, ``None``, NaN or ``""`` for none.

        Warns:
            UserWarning: If all examples are labelled, or the unlabelled rows of a table contradict the class prior.
        """
        self._check_parameters()
        return self._fit(X, y, self.warm_start and hasattr(self, "model_"), self.classes)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> M2Classifier:
        """Train for one pass over examples, starting from the weights of earlier calls.

        Args:
            X: Examples.
            y: Labels.
            classes: All classes; needed in the first call if ``y`` does not hold them all.
        """
        self._check_parameters()
        return self._fit(X, y, hasattr(self, "model_"), self.classes if classes is None else classes, **ONE_PASS)

    def _fit(self, X: ArrayLike, y: ArrayLike, again: bool, classes: ArrayLike | None, **changes: Any) -> M2Classifier:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        rows = self._check_rows(X, reset=not again)
        if again and classes is not None and not np.array_equal(sort_classes(classes), self.classes_):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()} are not those of earlier calls: {self.classes_.tolist()}."
            )
        codes, self.classes_ = encode_targets(y, self.classes_ if again else classes, self.n_classes)
        if len(codes) != len(rows):
            raise ValueError(f"X has {len(rows)} examples and y {len(codes)} labels; both must be alike.")
        if (codes >= 0).all() and not changes:  # which are those of partial_fit
            warn("y labels every example: without unlabelled ones (-1) this is an ordinary classifier.")
        data, quick = self._as_data(rows, codes, len(self.classes_)), bool(changes)
        longest, model = math.inf if self.max_time is None else self.max_time, getattr(self, "model_", None)
        with PYRO_LOCK:
            end = time.monotonic() + longest
            prior = None if model is not None else self._class_prior(rows, data, quick)
            left = max(longest / 2.0, end - time.monotonic())  # training has what the estimate of the prior leaves
            objective = self._make_objective(rows, data, model, prior, changes)
            self._train(objective, data, **changes, max_minutes=None if math.isinf(left) else left / 60.0)
            self.temperature_ = self._choose_temperature(rows, data, quick, end)
        predicted = self._apply(lambda model, x: model.predict(x), X)
        self.transduction_ = self.classes_[np.where(codes >= 0, codes, predicted)]
        warn_about_class_prior(self.model_, data, self.classes_)
        return self

    def _make_objective(
        self, rows: Array, data: SemiSupervisedData, model: Any, class_prior: Any, changes: dict[str, Any]
    ) -> Objective:
        if model is None:
            model = M2.for_data(data, class_prior=class_prior, **self._sizes(rows))
        return self._regularised(model, data)

    def _regularised(self, model: Any, data: SemiSupervisedData) -> SemiSupervisedELBO:
        """Return the default objective with the weights given."""
        options: dict[str, Any] = {} if self.consistency_weight else {"consistency": None}
        options |= {} if self.bound_weight is None else {"bound_weight": self.bound_weight}
        objective = SemiSupervisedELBO.for_data(model, data, alpha=self.alpha, **options)
        if objective.consistency is not None:
            objective.consistency.weight *= self.consistency_weight / CONSISTENCY_WEIGHT
            if isinstance(self.class_prior, str) and self.class_prior == "auto":
                # Also with equal shares, if the rows do not speak against them.
                objective.consistency.align = objective.consistency.align or TABLE_ALIGNMENT
                if len(data.event_shape) == 1:  # under a uniform prior this raised the error on breast_cancer
                    objective.consistency.strong = exchange_unpredicted(model, data)
        return objective

    def _class_prior(self, rows: Array, data: SemiSupervisedData, quick: bool) -> Any:
        """Return the class prior of the model: one that is fixed, or the name of one that is learned."""
        given, number = self.class_prior, len(self.classes_)
        if isinstance(given, (list, tuple, np.ndarray)):
            return FixedClassPrior(number, np.asarray(given).tolist())
        if not (isinstance(given, str) and given == "auto"):
            return given
        known = data.y[data.y >= 0].numpy()
        if rows.ndim > 2 or len(np.unique(known)) < number:
            return FixedClassPrior(number)
        if len(known) == len(rows):
            return FixedClassPrior(number, (np.bincount(known) / len(rows)).tolist())
        return self._estimate_prior(rows, data, known, quick)

    def _estimate_prior(self, rows: Array, data: SemiSupervisedData, known: Array, quick: bool) -> FixedClassPrior:
        """Return a prior with the estimated shares, which takes half of ``max_time``, and the rest of one classifier.

        ``known`` are the labels, and ``quick`` says that only the classifiers of the labelled rows are asked.
        """
        number, coded = len(self.classes_), list(getattr(self, "categories_", ()))
        end = time.monotonic() + (math.inf if self.max_time is None else self.max_time / 2.0)
        shares, certainty = estimate_shares(rows[data.y.numpy() >= 0], known, rows, coded, end)
        prior = FixedClassPrior(number, shares)
        alone = self.bound_weight == 0.0 and not self.consistency_weight  # labels alone: nothing uses the shares
        if quick or not certainty or alone:
            return prior
        model = self._fit_briefly(rows, data, prior, _FREQUENCY_STEPS, end, "the class frequencies")
        if model is None:
            return prior
        predicted = model.predict_proba(data.x.float() / data.scale).mean(0).cpu().numpy()
        return FixedClassPrior(number, shrink_shares(predicted, certainty, len(rows)))

    def _fit_briefly(
        self, rows: Array, data: SemiSupervisedData, prior: Any, steps: int, end: float, words: str
    ) -> M2 | None:
        """Return a model after a few steps; ``None`` if ``max_steps`` are fewer, or if ``end`` comes before."""
        left = end - time.monotonic()
        if left <= 0.0 or (self.max_steps or steps) < steps:
            return None
        if self.verbose:
            print(f"short fit for {words}")
        model = M2.for_data(data, class_prior=prior, **self._sizes(rows, announce=False))
        config = self._config(max_steps=steps, max_minutes=None if math.isinf(left) else left / 60.0)
        done = fit(self._regularised(model, data), data, config, progress=bool(self.verbose))
        return model if done.steps == steps else None

    def _choose_temperature(self, rows: Array, data: SemiSupervisedData, quick: bool, end: float) -> float:
        """Return the temperature by labels left out of short fits; the least one where that is not possible."""
        known, number = torch.nonzero(data.y >= 0)[:, 0], len(self.classes_)
        y = data.y[known].numpy()
        least = least_temperature(len(y), number)
        if quick or rows.ndim > 2 or not isinstance(self.model_, M2) or np.bincount(y, minlength=number).min() < 2:
            return least
        shares = self.model_.class_prior.mean().detach().cpu().double().numpy()
        learned = not isinstance(self.model_.class_prior, FixedClassPrior)
        logits = np.zeros((len(y), number))
        folds = min(_FOLDS, int(np.bincount(y).min()))
        for fold, (_, left_out) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(y, y)):
            hidden = data.y.clone()
            hidden[known[left_out]] = -1
            prior = self.class_prior if learned else FixedClassPrior(number, shares.tolist())
            hidden_data, words = replace(data, y=hidden), f"the temperature, {fold + 1} of {folds}"
            model = self._fit_briefly(rows, hidden_data, prior, _TEMPERATURE_STEPS, end, words)
            if model is None:
                return least
            x = data.x[known[left_out]].double() / data.scale
            logits[left_out] = model.double().predict_proba(x).clamp_min(1e-300).log().cpu().numpy()
        return max(least, estimate_temperature(logits, y, shares))

    # Prediction.

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return probabilities of the classes, shape ``(N, K)``, columns in the order of ``classes_``.

        They are the softmax of the logits of q(y|x) divided by ``temperature_``, because training on few labels and on
        its own confident predictions makes q(y|x) overconfident (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
        ``model_.predict_proba`` returns q(y|x) itself.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Return the logarithm of :meth:`predict_proba`, shape ``(N, K)``."""
        return self._apply(lambda model, x: (model.predict_proba(x).log() / self.temperature_).log_softmax(-1), X)

    def predict(self, X: ArrayLike) -> Array:
        """Return the most probable class of each example, shape ``(N,)``."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on the examples that have a label; so ``cross_val_score`` takes partly labelled data.

        Raises:
            ValueError: If no example has a label.
        """
        predicted = self.predict(X)
        labels, known = select_known(y)
        check_consistent_length(predicted, known, sample_weight)
        if not len(labels):
            raise ValueError("y has no label (-1, None, NaN and '' mark unlabelled examples), and a score needs some.")
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(accuracy_score(labels, predicted[known], sample_weight=weights))

    def sample(self, n_samples: int = 1, y: Any = None) -> tuple[Array, Array]:
        """Return generated examples (means of p(x|y,z)) and their classes.

        Args:
            n_samples: How many.
            y: A class, or one for each example; ``None`` to draw them by the class prior.

        Raises:
            ValueError: For classes that the estimator does not know.
        """
        with self._sampling(n_samples) as model:
            codes: Any = None
            if y is not None:
                labels, classes = as_array(y, "y"), self.classes_.tolist()
                if unknown := [label for label in labels.ravel().tolist() if label not in classes]:
                    raise ValueError(f"y={unknown[:5]} is no class of this estimator; classes: {classes}.")
                codes = np.searchsorted(self.classes_, labels)
            x, codes = model.generate(n_samples, codes)
        return self._in_units_of_input(x), self.classes_[codes.cpu().numpy()]


@parameters
class M1M2Classifier(M2Classifier):
    """M1+M2 (Kingma et al. 2014) as a classifier: an M1 of all examples, then an M2 of its latents.

    The other parameters are those of :class:`M2Classifier` without ``consistency_weight``.

    Args:
        m1_latent_dim: Number of latents of M1; ``None``: half of the columns, from 2 to 20, and 50 for images.
    """

    m1_latent_dim: int | None = None
    alpha: float = 1.0
    bound_weight: float = 1.0
    consistency_weight: ClassVar[float] = CONSISTENCY_WEIGHT  # type: ignore[misc] # no parameter

    def _make_objective(
        self, rows: Array, data: SemiSupervisedData, model: Any, class_prior: Any, changes: dict[str, Any]
    ) -> Objective:
        if model is None:
            sizes = self._sizes(rows)
            image, columns = rows.ndim > 2, int(np.prod(rows.shape[1:]))
            m1_latents = 50 if image else min(20, max(2, columns // 2))
            m1_latents = m1_latents if self.m1_latent_dim is None else self.m1_latent_dim
            prior = M1_BELOW.model["prior"] if image else None
            m1 = M1.for_data(data, **(sizes | {"latent_dim": m1_latents, "prior": prior}))
            unlabelled = data.without_labels()
            self._train(UnsupervisedELBO.for_data(m1, unlabelled), unlabelled, **changes)
            del self.model_  # which is not an M1, should the second stage fail
            options = STACK_PURE.model | {name: sizes[name] for name in ("latent_dim", "hidden_dims")}
            model = M1M2.for_data(data, m1=m1, class_prior=class_prior, **options)
        return SemiSupervisedELBO.for_data(model, data, pure=True, alpha=self.alpha, bound_weight=self.bound_weight)
