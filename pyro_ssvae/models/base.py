"""The base class of the models, what users may hand to them, the plate over examples, and the random state."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn

from pyro_ssvae._arguments import as_scale, as_seed, checked
from pyro_ssvae._arrays import as_examples, check_finite, holds_missing, to_numpy, value_range
from pyro_ssvae._configurable import REGISTRY, Configurable, describe, find_parameters, is_library_class
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.features import FeatureSource
from pyro_ssvae.data.preparation import iterate_batches, map_examples, rescale
from pyro_ssvae.data.sources import has_names
from pyro_ssvae.data.storage import ExampleSource, open_source, sample_rows
from pyro_ssvae.data.tables import encode_rows, read_table
from pyro_ssvae.distributions.choice import check_counts, choose_likelihood, make_prior
from pyro_ssvae.distributions.priors import Prior
from pyro_ssvae.networks.variational import evaluation_mode

if TYPE_CHECKING:
    from typing_extensions import Self

ENUMERATE: InferDict = {"enumerate": "parallel", "expand": False}
"""The ``infer`` argument of a site that is summed over. ``expand=False`` keeps y at shape ``(K, 1)``, so that what
depends on y alone is computed K times and not K x batch times."""

_TOLERANCE = 1e-3  # by which rounding may take a mean in [0, 1] outside of it
FORMAT = 1  # of saved configurations


class Model(Configurable, abstract=True):
    """Base class of the models: examples of some shape, latents under a prior, and possibly classes.

    A subclass builds its networks, calls :meth:`_attach_prior` at the end of its constructor, and defines
    ``model(x, y=None, *, size=None)``, which samples a minibatch from the generative model, with x and known classes
    observed, and ``guide`` with the same arguments, which samples what is not known: x are examples
    ``(B, *event_shape)``, y integer classes ``(B,)`` or ``None`` where they are unknown (a model without classes takes
    no y), and ``size`` is the number of examples that the minibatch represents; ``None`` is ``B``. The arguments of the
    constructor are recorded, so that :func:`pyro_ssvae.save` and :func:`pyro_ssvae.load` work.

    Args:
        event_shape: Shape of one example; it must not be empty.
        latent_dim: Number of latents ``L``, positive.
        prior: A name in ``pyro_ssvae.distributions.PRIORS``, a module that returns p(z) when called, or ``None`` for
            the standard normal.
        num_classes: Number of classes ``K``, at least 2; ``None`` for a model without classes.

    Raises:
        ValueError: For other numbers, or unknown names.
        TypeError: For a prior of the wrong type.

    Attributes:
        data_scale: What the training examples were divided by, saved with the model; ``None`` before training.
        class_names: Names of the classes of the training examples, saved too; empty if not known.
        missing: Whether examples may have missing values (NaN).
        feature_names: Names of the columns of the table of training examples, saved too.
        categories: The words for which codes in these columns stand, saved too.
        feature_source: How features were computed from images, saved too; the model then takes images as well.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    num_classes: int | None
    missing: bool = False
    _initialised = False

    def __init__(
        self, event_shape: Sequence[int], latent_dim: int, prior: str | nn.Module | None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        if not event_shape:
            raise ValueError("event_shape=() must hold at least one size, for example (1, 28, 28) or (30,).")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        self.event_shape = torch.Size(event_shape)
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.prior = make_prior(prior, latent_dim)
        self.data_scale: float | None = None
        self.class_names: tuple[str, ...] = ()
        self.feature_names: tuple[str, ...] = ()
        self.categories: Mapping[str, tuple[str, ...]] = {}
        self.feature_source: FeatureSource | None = None
        self._data_range: tuple[float, float] | None = None

    def check_data(self, data: SemiSupervisedData) -> None:
        """Check that the model fits a data set.

        Raises:
            ValueError: If the shape of examples, the number of classes or values do not fit.
        """
        if tuple(self.event_shape) != tuple(data.event_shape):
            raise ValueError(
                f"The model expects examples of shape {tuple(self.event_shape)}, the data has {data.event_shape}. "
                "Build the model with event_shape=data.event_shape."
            )
        if self.num_classes is not None and data.num_classes is None:
            raise ValueError(
                f"The model has {self.num_classes} classes, and the data no labels. Give labels, or, to cluster, "
                f"SemiSupervisedData.from_arrays(x, num_classes={self.num_classes}); M1 and DDGM need no classes."
            )
        if self.num_classes is not None and self.num_classes < (data.num_classes or 0):
            raise ValueError(
                f"The model has {self.num_classes} classes, the data {data.num_classes}. Build a new model with "
                "num_classes=data.num_classes; a trained one gets no further classes."
            )
        if not self.missing and _holds_missing(data):
            raise ValueError(
                f"The data has missing values (NaN), which this {type(self).__name__} does not take. Build a new M1 or "
                "M2 by for_data(data), or with missing=True; for a DDGM, fill them in."
            )
        for examples in (sample_rows(data.x), data.x_validation, data.x_test):
            for batch in iterate_batches(examples, scale=data.scale, batch_size=4096):
                self.check_examples(batch)

    def _attach_prior(self) -> None:
        """Hand the finished model to its prior, which may depend on the networks (a VampPrior)."""
        if isinstance(self.prior, Prior):
            self.prior.attach(self)

    @property
    def event_size(self) -> int:
        """Number of elements of an example."""
        return math.prod(self.event_shape)

    def training_functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the model and guide whose bound is the training loss: ``self.model`` and ``self.guide``."""
        return self.model, self.guide

    def check_examples(self, x: Tensor) -> None:
        """Raise ``ValueError`` if examples ``(B, *event_shape)`` lie outside the domain of the model."""

    @classmethod
    @checked
    def for_data(cls, data: SemiSupervisedData, **options: Any) -> Self:
        """Build the model for a data set, with initial weights drawn by the seed of the data.

        The data give the shape of examples, the number of classes, and whether values are missing.

        Args:
            data: The data set.
            **options: Arguments of the class, which take precedence. A likelihood is copied. ``likelihood="auto"``
                chooses one for each column of a table. By default images in colour, and grey ones with more than a
                quarter of the values between 0.1 and 0.9, have a discretised logistic likelihood (Gaussian, if they
                are not of 8 bits), those in colour convolutional networks, and features a Gaussian likelihood.

        Raises:
            ValueError: If the model needs classes, and none are known.

        Example:
            >>> from pyro_ssvae import M2, SemiSupervisedData
            >>> M2.for_data(SemiSupervisedData.from_name("digits"), latent_dim=5).num_classes
            10
        """
        if options.get("likelihood") == "auto" and len(data.event_shape) > 1:
            del options["likelihood"]
        elif options.get("likelihood") == "auto":
            levels = {data.feature_names.index(name): len(words) for name, words in data.categories.items()}
            options["likelihood"] = choose_likelihood(rescale(sample_rows(data.x), data.scale).numpy(), levels)
        arguments: dict[str, Any] = {"event_shape": data.event_shape, **cls._class_arguments(data)}
        taken = find_parameters(cls)
        chosen = {name: value for name, value in cls._choose_arguments(data, options).items() if name in taken}
        if isinstance(options.get("likelihood"), nn.Module):
            with suppress(RuntimeError):  # of tensors that cannot be copied
                options["likelihood"] = copy.deepcopy(options["likelihood"])
        model = cls._build_seeded(data.seed, chosen, arguments | options)
        model.fit_units(data)
        return model

    @classmethod
    def _build_seeded(cls, seed: int, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> Self:
        """Build the model with arguments, without those of the ``chosen`` ones that a subclass sets itself."""
        try:
            with seeded(seed):
                return cls(**{**chosen, **given})
        except TypeError as error:  # the constructor passes on a value of its own besides its **kwargs
            repeated = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
            if repeated is None or repeated[1] not in chosen or repeated[1] in given:
                raise
            rest = {name: value for name, value in chosen.items() if name != repeated[1]}
        return cls._build_seeded(seed, rest, given)

    @classmethod
    def _class_arguments(cls, data: SemiSupervisedData) -> dict[str, Any]:
        """Return the arguments of the constructor that say how many classes there are."""
        return {}

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return defaults that depend on the examples, of arguments which the constructor may or may not have."""
        return {"missing": True} if _holds_missing(data) else {}

    def fit_units(self, data: SemiSupervisedData) -> None:
        """Remember the scale and the names of a data set; called by :meth:`for_data` and before training.

        A likelihood with units estimates them from the training examples, unless they are known.
        """
        self.data_scale, self.class_names = data.scale, data.class_names
        self.feature_names, self.categories = data.feature_names, data.categories
        self.feature_source = data.feature_source
        low, high = value_range(sample_rows(data.x))
        self._data_range = low / data.scale, high / data.scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._initialised = all(prefix + name in state_dict for name, _ in self.named_parameters())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def initialise(self, x: Tensor) -> None:
        """Set starting values from training examples ``(B, *event_shape)``; called once, before training.

        It is not called for a model whose weights were loaded.
        """
        if isinstance(self.prior, Prior):
            self.prior.start_from(x)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x) or p(y|x), with shape ``(B, K)``, for x ``(B, *event_shape)``.

        Raises:
            ValueError: For a model without classes.
        """
        if self.num_classes is None:
            latents = " Its transform(x), or pyro-ssvae predict, gives latents." if hasattr(self, "transform") else ""
            raise ValueError(f"This {type(self).__name__} has no classes, so it cannot classify.{latents}")
        raise NotImplementedError(f"{type(self).__name__} must define classify(x) -> logits.")

    def classify_model(self, x: Tensor, y: Tensor, *, size: int | None = None) -> None:
        """Observe the classes of labelled examples under q(y|x), at site ``"y_aux"``: the last term of equation 9."""
        with data_plate(x, size):
            pyro.sample("y_aux", dist.Categorical(logits=self.classify(x)), obs=y)

    def predict(self, x: ArrayLike) -> Tensor:
        """Return the most probable class of each example, with shape ``(B,)``; errors as :meth:`predict_proba`."""
        return self.predict_proba(x).argmax(-1)

    def predict_proba(self, x: ArrayLike) -> Tensor:
        """Return the probabilities of the classes, with shape ``(B, K)``, in evaluation mode, computed in batches.

        Args:
            x: Examples with shape ``(B, *event_shape)``: a tensor, an array, a table, nested lists, or a path and all
                else that :meth:`~pyro_ssvae.SemiSupervisedData.from_arrays` leaves on disk. Integers are
                divided by :attr:`data_scale`, as in training; other numbers are taken as they are. Where the examples
                of training were features of images, images ``(B, C, H, W)``, too.

        Raises:
            ValueError: For a model without classes, or examples that are infinite (or NaN, unless :attr:`missing`), of
                another shape than the model's or outside [0, 1] where its likelihood needs that.
            TypeError: For examples that are not numeric.

        Warns:
            UserWarning: If examples look as if they should have been divided by :attr:`data_scale`.
        """
        return self._map(lambda x: self.classify(x).softmax(-1), x)

    def config(self) -> dict[str, Any]:
        """Return what :func:`pyro_ssvae.load` needs to rebuild the model, JSON-ready.

        The entries are those of the constructor's arguments, and for a subclass of a model of this package, under
        ``"base"``, those in which that model differs.
        """
        config = {"format": FORMAT, **describe(self)}
        if self.data_scale is not None:
            data: dict[str, Any] = {"scale": self.data_scale, "range": self._data_range}
            data["class_names"] = self.class_names
            data |= {"feature_names": self.feature_names, "categories": self.categories} if self.feature_names else {}
            data |= {"features": self.feature_source.config()} if self.feature_source is not None else {}
            config["data"] = data
        library = (cls for cls in type(self).__mro__ if is_library_class(cls) and REGISTRY.get(cls.__name__) is cls)
        base = next(library, type(self))
        if base is not type(self):
            config["base"] = {name: part for name, part in describe(self, base).items() if part != config[name]}
        return config

    def _map(self, function: Callable[[Tensor], Tensor], x: ArrayLike, dim: int = 0, copies: int = 1) -> Tensor:
        """Return what :func:`map_examples` does for examples as they are stored, in evaluation mode."""
        examples, scale = as_input(self, x)
        like = next(self.parameters())
        with torch.no_grad(), evaluation_mode(self):
            return map_examples(function, examples, scale=scale, like=like, dim=dim, copies=copies)


def _holds_missing(data: SemiSupervisedData) -> bool:
    return holds_missing(sample_rows(data.x), data.x_validation, data.x_test)


def as_input(model: Any, x: Any, scale: float | None = None) -> tuple[Tensor, float]:
    """Return examples as a tensor (or source) of the model's shape, finite or NaN where allowed, and their divisor.

    Args:
        model: The model.
        x: As for :meth:`Model.predict_proba`. Columns of a DataFrame, an AnnData and the like are taken by name if the
            model knows the names of its columns.
        scale: What to divide by. ``None``: integers are divided by the scale of training, other numbers by 1; those
            that were probably meant to be divided are refused or warned about.
    """
    x, is_integer = _read_examples(model, x)
    divisor = model.data_scale if is_integer else 1.0
    if x.shape[1:] != model.event_shape:
        needed = f"(B, *event_shape) with event_shape={tuple(model.event_shape)}"
        raise ValueError(f"x must have shape {needed}; got {tuple(x.shape)}.")
    if isinstance(x, Tensor) and x.is_meta:  # has no values
        if not next(model.parameters()).is_meta:
            raise ValueError("x is on the device 'meta', where tensors hold no values; pass it on the CPU.")
        return x, 1.0 if divisor is None else divisor
    check_finite(sample_rows(x), "x", allow_missing=model.missing, columns=model.feature_names)
    divisor = as_scale(divisor if scale is None else scale, x)
    if scale is None and len(x):
        _check_scale(model, *(end / divisor for end in value_range(sample_rows(x))))
        check_counts(getattr(model, "likelihood", None), sample_rows(x), divisor)
    return x.detach() if isinstance(x, Tensor) else x, divisor


def _read_examples(model: Any, x: Any) -> tuple[Tensor | ExampleSource, bool]:
    """Return examples as a tensor or source, of tables the columns of the model, and whether they are integers."""
    features, names = model.feature_source, model.feature_names
    encode = (lambda table: encode_rows(table, names, model.categories)) if names else None
    source = open_source(x, model.event_shape if features is None else features.image_shape, encode, names)
    if source is not None and model.missing:
        source.holds_missing = True  # whether or not those of the sample do
    if features is not None:
        parts = [features.convert(part) for part in ([x] if source is None else source.split(1000))]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
    elif source is not None:
        return source, source.is_integer
    if encode is not None and has_names(x, names):
        x = encode(read_table(x))
    if isinstance(x, Tensor) and x.is_floating_point() and x.shape[1:] == model.event_shape:
        return x, False
    array = to_numpy(x, "x")
    allowed: Any = {"allow_empty": True, "allow_missing": model.missing, "columns": names}
    return as_examples(array, event_shape=model.event_shape, **allowed), array.dtype.kind in "iu"


def _check_scale(model: Any, low: float, high: float) -> None:
    """Raise an error, or warn, for values that were not divided by the scale of training."""
    scale = model.data_scale or 1.0
    done = f"Training values were divided by {scale:g}: give x / {scale:g}."
    advice = done if scale != 1.0 else "Scale x as in training."
    likelihood = getattr(model, "likelihood", None)
    if getattr(likelihood, "unit_interval", False) and not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):
        needed = f"the likelihood of the model, {getattr(likelihood, 'name', '')}, needs values in [0, 1]"
        raise ValueError(f"x spans [{low:g}, {high:g}], and {needed}. {advice}")
    if model._data_range is not None:
        least, most = model._data_range
        width = max(most - least, abs(most))
        fits = scale != 1.0 and least - width <= low / scale and high / scale <= most + width
        if high > most + (width if fits else 10 * width) and (fits or len(model.event_shape) == 3):
            warn(f"x goes up to {high:g}, the training examples to {most:g}. {advice}")


def data_plate(x: Tensor, size: int | None) -> pyro.plate:
    """Return the plate over the B examples x of a minibatch, at dimension -1, which scales by ``size`` / B if given."""
    batch = x.shape[0]
    # Explicit indices, because Pyro would otherwise draw a permutation of all N examples at every step and discard it.
    indices = torch.arange(batch, device=x.device)
    return pyro.plate("data", batch if size is None else size, subsample=indices, dim=-1)


def get_device(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(module.parameters()).device


def full_precision(tensor: Tensor) -> Tensor:
    """Return half-precision outputs of networks (under autocast) as float32, in which all bounds are computed."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextmanager
def fork_random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed the random state, without gradients and with the model in evaluation mode; restore all of it afterwards."""
    with torch.no_grad(), evaluation_mode(model), seeded(as_seed(seed), get_device(model)):
        yield


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the random state of the CPU and, if it is a GPU, of a device; restore both afterwards."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which would also reseed devices that are not restored.
        torch.default_generator.manual_seed(seed)
        for cuda_device in cuda:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
