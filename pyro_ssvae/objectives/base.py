"""What every objective shares: losses with their terms, groups of parameters, validation, the bound of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae.data import Batch
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.diagnostics import find_scale, iterate_batches_for
from pyro_ssvae.models.serialization import check_state
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO
from pyro_ssvae.objectives.handlers import GlobalSites, PlateSizes, ScaleSite

PyroFunction = Callable[..., Any]


class Loss(NamedTuple):
    """A loss, a scalar in nats per example, and its terms by name, detached and before weighting.

    Terms are logged as ``train/NAME``.
    """

    total: Tensor
    terms: dict[str, Tensor]


class ParameterGroup(NamedTuple):
    """Parameters with an optimiser of their own.

    Attributes:
        parameters: The parameters.
        rate: Their learning rate, as a multiple of ``TrainingConfig.learning_rate``.
        betas: β1 and β2 of Adam.
        fraction: Fraction of the schedule over which their learning rate decays. After it the learning rate starts
            again from its peak, and so does the moving average of the weights.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    fraction: float = 1.0


class Update(NamedTuple):
    """One optimiser step of one group of parameters: the name of the group, and the loss it minimises on a batch."""

    group: str
    loss: Callable[[Batch], Loss]


@dataclass(frozen=True)
class Validation:
    """What an evaluation during training found.

    Attributes:
        metrics: By name; they are logged as ``val/NAME``.
        score: By which weights are chosen, higher is better; with ``None`` the latest weights are chosen.
        standard_error: Of the score. The latest weights are chosen whose score lies within it of the highest score, so
            that a difference that may be chance does not prefer weights of an early step.
        failure: Why training must stop, ``None`` if it should go on.
        keep: Whether the weights are good enough to replace the saved checkpoint and model.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    standard_error: float = 0.0
    failure: str | None = None
    keep: bool = True


@checked
class Objective(nn.Module):
    """A bound or loss as a module: call it with a batch, get one scalar to minimise, in nats per example.

    A subclass defines :meth:`loss` and :meth:`config`; one with several groups of parameters that minimise losses of
    their own defines :meth:`groups` and :meth:`updates` instead of :meth:`loss`.

    Args:
        module: The module that owns the networks, for example a :class:`pyro_ssvae.M2`. Unless functions are given, the
            loss uses what its method ``training_functions`` returns, if it has one, else its ``model`` and ``guide``;
            evaluation always uses the latter.
        num_labelled: Number of labelled training examples.
        num_unlabelled: Number of unlabelled training examples.
        model: A function to use instead of ``module.model``.
        guide: A function to use instead of ``module.guide``.

    Raises:
        TypeError: For a module that is wrapped by ``torch.compile``.
        ValueError: For negative numbers of examples, or no examples at all.

    Attributes:
        kl_schedule: Warm-up and peak of the weight of the KL of z with 10,000 examples or more, the defaults of
            ``kl_warmup`` and ``kl_peak`` of :class:`TrainingConfig`.
        has_bound: Whether the objective contains a bound on log p(x).
        compilable: Whether a step can be traced once and run again: nothing in it depends on values on the device.
        compile_after: Length of the schedule, in steps, from which compiling a step saves more time than it takes.
    """

    module: Any
    kl_schedule: tuple[float, float] = (0.15, 8.0)
    has_bound: bool = True
    compilable: bool = True
    compile_after: int = 10_000
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
        if num_labelled + num_unlabelled == 0:
            raise ValueError("num_labelled=0 and num_unlabelled=0 must not both be zero.")
        if hasattr(module, "_orig_mod"):  # whose methods would not be compiled, and which could not be saved
            raise TypeError(
                "The model is wrapped by torch.compile. Pass the model itself; TrainingConfig(compile='compiled') "
                "compiles its steps of training."
            )
        self.module = module
        self.num_labelled = num_labelled
        self.num_unlabelled = num_unlabelled
        self._functions = {"model": model, "guide": guide}
        self._evaluation_elbo: TraceEnum_ELBO = StaticEnumELBO(require_enumeration=False)  # exact, with one draw
        self._validated = False
        # A tensor, so that a compiled step follows it; without dimensions, so that it promotes nothing to float64.
        self.register_buffer("_kl_weight", torch.ones((), dtype=torch.float64), persistent=False)
        self._kl_weight_value = 1.0  # a copy in Python, which is read without synchronising with the device

    @property
    def kl_weight(self) -> float:
        """Factor of log p(z) and log q(z|·), 1 for a bound.

        A value that is set before :func:`pyro_ssvae.fit` counts as ``TrainingConfig.kl_weight``.
        """
        return self._kl_weight_value

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        if value != self._kl_weight_value:
            self._kl_weight.fill_(value)
            self._kl_weight_value = float(value)

    @property
    def num_examples(self) -> int:
        """Number of training examples N."""
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
        """The generative model in use, down to x."""
        return self._functions["model"] or self.module.model

    @property
    def guide(self) -> PyroFunction:
        """The guide in use."""
        return self._functions["guide"] or self.module.guide

    def describe(self) -> str | None:
        """Return in words what the loss contains, for results, where published losses of one name differ in that."""
        return None

    def training_functions(self) -> tuple[PyroFunction, PyroFunction]:
        """Return the model and the guide of the loss, which may leave out what training does not change."""
        given = self._functions["model"] or self._functions["guide"]
        own = None if given else getattr(self.module, "training_functions", None)
        return (self.model, self.guide) if own is None else own()

    # Losses.

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch and its terms.

        The batch holds unlabelled examples ``(B_u, *event_shape)``, and labelled ones ``(B_l, *event_shape)`` with
        classes ``(B_l,)``; either side may be ``None``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch) -> Loss.")

    def groups(self) -> dict[str, ParameterGroup]:
        """Return the groups of parameters, by name."""
        return {"all": ParameterGroup(list(self.parameters()))}

    def updates(self, progress: float = 0.0) -> list[Update]:
        """Return the updates of a step in order, each loss computed after the update before; progress is in [0, 1)."""
        return [Update("all", self.loss)]

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Return the loss of every group at the present weights, each unbiased.

        Raises:
            TypeError: For anything but a :class:`~pyro_ssvae.data.Batch` or three tensors.
            ValueError: For an empty batch, one of a single example where batch normalisation needs more, examples of
                another shape than the model's, or labelled ones without a class each; the first call also looks at the
                numbers of the classes.
        """
        batch = self._check_batch(batch)
        try:
            # Pyro's checks of shapes and supports read tensors back from the device: once is enough.
            with pyro.validation_enabled(not self._validated):
                losses = {update.group: update.loss(batch) for update in self.updates()}
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            sizes = {"unlabelled": batch.x_unlabelled, "labelled": batch.x_labelled}
            told = " and ".join(f"{len(part)} {name}" for name, part in sizes.items() if part is not None)
            raise ValueError(
                f"Batch normalisation needs at least two examples, and a batch here has {told}: raise batch_size or "
                "labelled_batch_size, or, where there is only one example, build the model without batch normalisation."
            ) from error
        self._validated = True
        return losses

    def _check_batch(self, batch: Batch) -> Batch:
        """Return a batch without empty parts, in the precision of the weights, or raise an error."""
        if not isinstance(batch, (tuple, list)) or len(batch) != 3:
            raise TypeError(
                "A batch is Batch(x_unlabelled, x_labelled, y_labelled), of unlabelled examples Batch(x, None, None); "
                f"got the type {type(batch).__name__}."
            )
        for name, part in zip(Batch._fields, batch, strict=True):
            if not (part is None or isinstance(part, Tensor)):
                raise TypeError(f"{name} has the type {type(part).__name__}; give a tensor or None.")
        x_unlabelled, x, y = batch
        sizes = [None if part is None else len(part) for part in (x, y)]
        if sizes[0] != sizes[1]:
            told = ["no" if size is None else size for size in sizes]
            raise ValueError(
                f"x_labelled holds {told[0]} examples and y_labelled {told[1]} classes; give a class for each, or "
                "leave both out."
            )
        x_unlabelled = x_unlabelled if x_unlabelled is not None and len(x_unlabelled) else None
        x, y = (x, y) if sizes[1] else (None, None)
        if x_unlabelled is None and x is None:
            raise ValueError("The batch holds neither unlabelled nor labelled examples.")
        self._check_parts(x_unlabelled, x, y)
        return Batch(x_unlabelled, x, None if y is None else y.long()).cast(next(self.parameters()).dtype)

    def _check_parts(self, x_unlabelled: Tensor | None, x: Tensor | None, y: Tensor | None) -> None:
        """Raise ``ValueError`` for examples or classes that do not fit the model."""
        shape = getattr(self.module, "event_shape", None)
        for name, part in (("x_unlabelled", x_unlabelled), ("x_labelled", x)):
            if part is not None and shape is not None and (part.shape[1:] != shape or not part.is_floating_point()):
                raise ValueError(
                    f"{name} has shape {tuple(part.shape)} and type {part.dtype}; floating-point numbers of shape "
                    f"(B, {', '.join(map(str, shape))}) are needed, such as x.float() / data.scale."
                )
        number = getattr(self.module, "num_classes", None)
        if y is None or number is None:
            return
        if y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(
                f"y_labelled has shape {tuple(y.shape)} and type {y.dtype}; integers of shape (B,) are needed."
            )
        if not self._validated and not 0 <= int(y.min()) <= int(y.max()) < number:  # which synchronises with a GPU
            raise ValueError(
                f"y_labelled runs from {int(y.min())} to {int(y.max())}; classes are 0 to {number - 1}. Unlabelled "
                "examples belong to x_unlabelled."
            )

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar in nats per example.

        Raises:
            ValueError: If the batch is empty, or if there are several groups with losses of their own.
        """
        losses = self.losses(batch)
        if len(losses) > 1:
            raise ValueError(
                f"{type(self).__name__} has a loss for each of {', '.join(losses)}; call losses(batch), and step each "
                "group by the gradient of its own loss, as pyro_ssvae.fit does."
            )
        return next(iter(losses.values())).total

    # Bounds.

    def bound(self, elbo: TraceEnum_ELBO, shared: GlobalSites, *examples: Tensor | None, size: int) -> Tensor:
        """Return the negative bound of ``size`` examples, estimated from a minibatch, in nats (a sum, not a mean)."""
        weigh = ScaleSite("z", self._kl_weight)
        model, guide = (shared(weigh(function)) for function in self.training_functions())
        if examples[0] is None or not is_validation_enabled():
            return elbo.differentiable_loss(model, guide, *examples, size=size)
        plates = PlateSizes()
        total = elbo.differentiable_loss(plates(model), plates(guide), *examples, size=size)
        plates.check(len(examples[0]), size)
        return total

    def unlabelled_bound(self, x: Tensor) -> float:
        """Return the mean negative bound of x ``(B, *event_shape)``, in nats: without labels and global terms."""
        local, plates = GlobalSites(score=False), PlateSizes()
        model, guide = (plates(local(function)) for function in (self.model, self.guide))
        total: float = self._evaluation_elbo.loss(model, guide, x)
        plates.check(len(x), len(x))
        return total / x.shape[0]

    def mean_bound(
        self,
        x: Tensor,
        *,
        scale: float | None = None,
        binarisation: str = "none",
        seed: int = 0,
        batch_size: int = 500,
    ) -> float:
        """Return the mean bound on log p(x), in nats per example (higher is better), with one draw of z.

        Classes, where the model has some, are summed: -U(x). The caller's random state is left as it was.

        Args:
            x: Examples with shape ``(N, *event_shape)``, as stored.
            scale: Divides ``x``; if ``None``, integers are divided by the ``data_scale`` of the module.
            binarisation: As in training; ``"dynamic"`` and ``"static"`` both draw each pixel once, fixed by the seed.
            seed: Of the binarisation and of the draws of z.
            batch_size: Examples at a time.

        Raises:
            ValueError: For zero examples.
        """
        if not len(x):
            raise ValueError("The mean bound of zero examples is not defined; pass at least one.")
        scale = find_scale(self.module, x, scale)
        options: dict[str, Any] = {"scale": scale, "batch_size": batch_size, "binarisation": binarisation, "seed": seed}
        total = 0.0
        with fork_random_state(self, seed):
            for batch in iterate_batches_for(self, x, **options):
                total -= self.unlabelled_bound(batch) * len(batch)
        return total / len(x)

    # Validation.

    def check(self, data: SemiSupervisedData) -> None:
        """Raise ``ValueError`` if shapes, classes, values or numbers of examples of module and data disagree.

        It is also raised for a ``PyroParam`` that models share, and ``TypeError`` if the module cannot be saved.
        """
        check_state(self.module)
        _check_pyro_params(self.module)
        if hasattr(self.module, "check_data"):
            self.module.check_data(data)
        if (self.num_labelled, self.num_unlabelled) != (data.num_labelled, data.num_unlabelled):
            raise ValueError(
                f"The objective was built for {self.num_labelled} labelled and {self.num_unlabelled} unlabelled "
                f"examples, the data has {data.num_labelled} and {data.num_unlabelled}. Build it by for_data(model, "
                "data); for a model without classes train on data.without_labels()."
            )

    def validate(
        self,
        data: SemiSupervisedData,
        *,
        history: Sequence[dict[str, Any]] = (),
        binarisation: str = "none",
        seed: int = 0,
    ) -> Validation:
        """Evaluate the module on validation examples; nothing is changed.

        Args:
            data: The data.
            history: What ``metrics.csv`` holds so far, the means of training terms since the last evaluation last.
            binarisation: As in training.
            seed: Of binarisation and draws.
        """
        return Validation()


def _check_pyro_params(module: nn.Module) -> None:
    """Raise ``ValueError`` for parameters in place of which Pyro would use those of other models of this process."""
    names = (f"{path}.{name}" for path, part in module.named_modules() for name in getattr(part, "_pyro_params", ()))
    name = next(names, None)
    if name is not None and not pyro.settings.get("module_local_params"):
        raise ValueError(
            f"{name.removeprefix('.')} is a PyroParam, which Pyro shares by its name among all models of a process. "
            "Call pyro.settings.set(module_local_params=True) before the model is built, or use torch.nn.Parameter."
        )
