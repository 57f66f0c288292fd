r"""M1+M2: an M2 of the latents of an M1 (Kingma et al. 2014, section 2, "Stacked generative semi-supervised model").

Generative model of an example; ``z`` is the paper's z2:

.. math::

    z \sim p(z), \qquad y \sim \mathrm{Cat}(\pi), \qquad z_1 \sim p_\theta(z_1 \mid y, z), \qquad
    x \sim p_\theta(x \mid z_1)

Inference model:

.. math:: z_1 \sim q_\phi(z_1 \mid x), \qquad y \sim q_\phi(y \mid z_1), \qquad z \sim q_\phi(z \mid z_1, y)

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae._arrays import to_numpy
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.distributions import Gaussian
from pyro_ssvae.distributions.choice import make_prior
from pyro_ssvae.distributions.torch_distributions import as_independent_normal, draw_alike
from pyro_ssvae.models.base import ENUMERATE, Model, data_plate, seeded
from pyro_ssvae.models.generation import mean_of
from pyro_ssvae.models.latent_variable import LatentVariableModel, SemiSupervisedModel
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.networks.images import make_classifier
from pyro_ssvae.networks.variational import evaluation_mode

_CLASSIFIER_OPTIONS = ("hidden_dims", "activation", "batch_norm", "dropout")  # of M2 and make_classifier


class M1M2(SemiSupervisedModel):
    """The M1+M2 model and guide: an M1 of the examples x, and an M2 of its latents z1.

    While M1 is frozen, as it is at first, p(x|z1) and q(z1|x) are constants of the bound: stacked training (the
    paper's) uses :meth:`latent_model` and :meth:`latent_guide`, which leave them out, with a new draw of z1 at every
    step. After :meth:`unfreeze_m1`, joint training uses :meth:`model` and :meth:`guide`, as evaluation always does.

    Shapes in the comments: ``B`` examples, ``K`` classes, ``L`` latents z, ``L1`` latents z1.

    Args:
        m1: A trained M1.
        m2: An M2 of its (active) latents: event shape ``(L1,)`` and a likelihood of real numbers, usually Gaussian.
            Its distributions are used, but not its methods ``model`` and ``guide``.
        active: Which latents of M1 are modelled, as a mask with shape ``(m1.latent_dim,)``; all where ``None``. The
            others, which carry no information (:func:`pyro_ssvae.evaluation.active_units`), are zero in p(x|z1).
        classifier: A module that maps x ``(B, *event_shape)`` to logits ``(B, K)``: q(y|x) instead of q(y|z1), for an
            ``m2`` that was built with ``classifier=None``.

    Raises:
        ValueError: For a mask of another shape or without a latent, an ``m2`` that does not fit the latents, or a
            number of classifiers other than one.
        TypeError: If ``m1`` is no M1 or ``m2`` no M2.

    Example:
        >>> m1 = M1((1, 8, 8), latent_dim=4, hidden_dims=(16,))
        >>> m2 = M2((4,), num_classes=10, latent_dim=3, hidden_dims=(16,), likelihood="gaussian")
        >>> m1m2 = M1M2(m1, m2)
        >>> m1m2.predict(torch.rand(5, 1, 8, 8)).shape, m1m2.generate(2, y=7)[0].shape
        (torch.Size([5]), torch.Size([2, 1, 8, 8]))
    """

    active: Tensor
    placing: Tensor
    m1_frozen = False
    bound_of_latents = True

    def __init__(
        self, m1: M1, m2: M2, *, active: Tensor | Sequence[bool] | None = None, classifier: nn.Module | None = None
    ) -> None:
        mask = _as_mask(active, m1)
        _check_m2(m2, int(mask.sum()), classifier)
        shared = (m1.likelihood, m2.prior, m2.class_prior, m1.missing)
        super().__init__(m1.event_shape, m2.num_classes, m2.latent_dim, *shared)
        self.m1, self.m2, self.classifier = m1, m2, classifier
        for name in ("data_scale", "_data_range", "class_names", "feature_names", "categories", "feature_source"):
            setattr(self, name, getattr(m1, name))
        self.register_buffer("active", mask.nonzero().squeeze(-1), persistent=False)  # (L1,), positions in M1's z
        # Puts z1 back among the latents of M1, with zeros for the rest.
        placing = torch.eye(m1.latent_dim)[mask.nonzero().squeeze(-1).tolist()]
        self.register_buffer("placing", placing, persistent=False)  # (L1, m1.latent_dim)
        self.freeze_m1()

    @classmethod
    @checked
    def for_data(cls, data: SemiSupervisedData, **options: Any) -> M1M2:
        """Call :meth:`from_m1` with ``options``, ``m1`` among them, and the classes and the seed of the data."""
        with seeded(data.seed):
            model = cls.from_m1(**{**cls._class_arguments(data), **options})
        model.fit_units(data)
        return model

    @classmethod
    @checked
    def from_m1(
        cls,
        m1: M1,
        num_classes: int,
        *,
        active: Tensor | Sequence[bool] | None = None,
        classify_from: str = "z1",
        classifier: str | nn.Module = "auto",
        min_scale: float = 0.05,
        latent_dim: int = 50,
        prior: str | nn.Module | None = None,
        **options: Any,
    ) -> M1M2:
        """Build the usual M2 on an M1, and return both as an M1M2.

        Args:
            m1: A trained M1.
            num_classes: Number of classes ``K``, at least 2.
            active: Which latents of M1 are modelled.
            classify_from: ``"z1"`` for the paper's q(y|z1), ``"x"`` for a classifier q(y|x) of the examples.
            classifier: Name or module of that classifier, as for :class:`M2`.
            min_scale: Smallest standard deviation of p(z1|y,z).
            latent_dim: Number of latents z, ``L``.
            prior: p(z), as for :class:`M2`.
            **options: Other arguments of :class:`M2`, such as ``hidden_dims`` and ``class_prior``.

        Raises:
            ValueError: For a mask that does not fit, or unknown names.
        """
        check_choice("classify_from", classify_from, ("z1", "x"))
        width = int(_as_mask(active, m1).sum())
        prior = make_prior(prior, latent_dim)  # before every classifier, so that a seed gives the same prior for both
        of_x = None
        if classify_from == "x":
            shared = {name: options[name] for name in _CLASSIFIER_OPTIONS if name in options}
            of_x = make_classifier(classifier, m1._classifier_shape, num_classes, **shared)
        options |= {"latent_dim": latent_dim, "prior": prior, "likelihood": Gaussian(min_scale=min_scale)}
        m2 = M2((width,), num_classes, classifier=classifier if of_x is None else None, **options)
        return cls(m1, m2, active=active, classifier=of_x)

    # Stacked and joint training.

    def freeze_m1(self) -> M1M2:
        """Keep M1 as it is, in evaluation mode, and train only what lies above z1."""
        self.m1_frozen = True
        self.m1.requires_grad_(False).eval()
        return self

    def unfreeze_m1(self) -> M1M2:
        """Train all parameters, those of M1 included."""
        self.m1_frozen = False
        self.m1.requires_grad_(True).train(self.training)
        return self

    def train(self, mode: bool = True) -> M1M2:
        """Set training or evaluation mode; a frozen M1 stays in evaluation mode, and so do its batch statistics."""
        super().train(mode)
        if self.m1_frozen:
            self.m1.eval()
        return self

    def training_functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the latent model and guide if M1 is frozen, else model and guide.

        Raises:
            ValueError: If M1 is frozen and a subclass changes ``model`` or ``guide`` alone, which training ignores.
        """
        if not self.m1_frozen:
            return self.model, self.guide
        for whole, *parts in (("model", "latent_model", "sample_z1"), ("guide", "latent_guide", "sample_y_and_z")):
            latest = next(vars(kind) for kind in type(self).__mro__ if {whole, *parts} & vars(kind).keys())
            if latest.keys().isdisjoint(parts):
                raise ValueError(
                    f"While M1 is frozen, training uses {parts[0]}, not the {whole} of {type(self).__name__}: override "
                    f"{parts[1]}, which both call, or {parts[0]} too, or call unfreeze_m1()."
                )
        return self.latent_model, self.latent_guide

    def config(self) -> dict[str, Any]:
        """Return the configuration of :class:`Model`, which also says if M1 is trained."""
        return super().config() | ({} if self.m1_frozen else {"m1_frozen": False})

    def initialise(self, x: Tensor) -> None:
        """Set starting values of M2 from the means of q(z1|x) of training examples ``(B, *event_shape)``."""
        with torch.no_grad(), evaluation_mode(self):
            self.m2.initialise(mean_of(self.encode_z1(x.to(next(self.parameters())))))

    def fit_units(self, data: SemiSupervisedData) -> None:
        """Remember the scale and class names; the units are those of M1, and estimated only if M1 is to be trained."""
        (Model if self.m1_frozen else LatentVariableModel).fit_units(self, data)

    # The generative model p(z) p(y|π) p(z1|y,z) p(x|z1) and the inference model q(z1|x) q(y|z1) q(z|z1,y).

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the generative model, with x and known y observed; arguments as for :class:`Model`."""
        log_pi = self.class_prior.model()  # (K,)
        with data_plate(x, size):
            z1 = self.sample_z1(log_pi, y)  # (B, L1)
            pyro.sample("x", self.decode_x(z1), obs=x)  # (B, *event_shape)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the inference model, where an unknown y is enumerated; arguments as for :class:`Model`."""
        self.class_prior.guide()
        with data_plate(x, size):
            z1 = pyro.sample("z1", self.encode_z1(x))  # (B, L1)
            self.sample_y_and_z(x, z1, y)

    def latent_model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample the generative model down to z1, the loss while M1 is frozen; :meth:`sample_z1` is in both models."""
        log_pi = self.class_prior.model()
        with data_plate(x, size):
            self.sample_z1(log_pi, y)

    def latent_guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the inference model, without the density of z1, which is constant while M1 is frozen."""
        self.class_prior.guide()
        with data_plate(x, size):
            with poutine.mask(mask=False):
                z1 = pyro.sample("z1", self.encode_z1(x))
            self.sample_y_and_z(x, z1, y)

    def sample_z1(self, log_pi: Tensor, y: Tensor | None) -> Tensor:
        """Sample z, y (if unknown) and z1 of the generative model, inside the plate; return z1 ``(B, L1)``."""
        z = pyro.sample("z", self.prior())  # (B, L), or (K, B, L) replayed from the guide
        y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)  # (B,), or (K, 1)
        return pyro.sample("z1", self.decode_z1(y, z))

    def sample_y_and_z(self, x: Tensor, z1: Tensor, y: Tensor | None) -> None:
        """Sample y (if unknown, enumerated) and z of the inference model, inside the plate."""
        if y is None:
            logits = self.m2.classify(z1) if self.classifier is None else self.classify(x)
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=ENUMERATE)  # (K, 1)
        pyro.sample("z", self.encode_z(z1, y))  # (B, L), or (K, B, L)

    # The conditional distributions; that of y as logits.

    def encode_z1(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z1|x), with event shape ``(L1,)``, for x ``(B, *event_shape)``.

        Raises:
            TypeError: If the posterior of M1 is not made of independent normal distributions.
        """
        qz = as_independent_normal(self.m1.encode(x))
        if qz is None:
            raise TypeError(
                f"M1M2 needs a diagonal Gaussian q(z1|x), and {type(self.m1).__name__}.encode returns another "
                "distribution. Return dist.Normal(loc, scale).to_event(1) there, or override encode_z1 and decode_z1."
            )
        return dist.Normal(qz.loc.index_select(-1, self.active), qz.scale.index_select(-1, self.active)).to_event(1)

    def encode_z(self, z1: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|z1,y), with event shape ``(L,)``, for z1 ``(B, L1)`` and y ``(B,)`` or ``(K, 1)``."""
        return self.m2.encode(z1, y)

    def decode_z1(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(z1|y,z), with event shape ``(L1,)``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        return self.m2.decode(y, z)

    def decode_x(self, z1: Tensor) -> dist.TorchDistribution:
        """Return p(x|z1), with event shape ``event_shape``, for z1 ``(..., L1)``."""
        return self.m1.decode(z1 @ self.placing)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x), with shape ``(B, K)``: q(y|z1) at a draw of z1 in training, else at its mean."""
        if self.classifier is not None:
            return self._as_logits(self.classifier(self._classifier_input(x)))
        q_z1 = self.encode_z1(x)
        return self.m2.classify(q_z1.rsample() if self.training else mean_of(q_z1))

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|z1,y) at the mean of q(z1|x), for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        return self.encode_z(mean_of(self.encode_z1(x)), y)

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z1) at the mean of p(z1|y,z), for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        return self.decode_x(mean_of(self.decode_z1(y, z)))

    def _decode_posterior(self, x: Tensor, num_samples: int, groups: int = 1) -> tuple[Tensor, Any]:
        posterior = self.encode_z1(x)
        z1 = draw_alike(posterior, (num_samples,), groups)  # (S, B, L1)
        flat = z1.flatten(0, 1)
        # p(z1) from one draw of z for each class.
        log_weights, of_z1 = self.m2._decode_posterior(flat, 1, num_samples * groups)
        log_prior = (log_weights + of_z1.log_prob(flat)).logsumexp((0, 1)).view(z1.shape[:2])
        return log_prior - posterior.log_prob(z1), self.decode_x(z1)

    @checked
    def predict_proba(self, x: ArrayLike, num_samples: int | None = None) -> Tensor:
        """Return q(y|x) as :meth:`Model.predict_proba`, or the mean of q(y|z1) over ``num_samples`` draws of z1."""
        if num_samples is None or self.classifier is not None:
            return super().predict_proba(x)

        def classify(x: Tensor) -> Tensor:
            return self.m2.classify(self.encode_z1(x).sample((num_samples,))).softmax(-1).mean(0)

        return self._map(classify, x, copies=num_samples)


def _as_mask(active: Tensor | Sequence[bool] | None, m1: M1) -> Tensor:
    """Return the mask of the active latents of an M1, with shape ``(m1.latent_dim,)``, on the CPU."""
    values = to_numpy([True] * m1.latent_dim if active is None else active, "active")
    mask = torch.as_tensor(values, device="cpu").bool()
    if mask.shape != (m1.latent_dim,) or not bool(mask.any()):
        raise ValueError(
            f"active must be a mask of {m1.latent_dim} latents, at least one of them kept; got shape "
            f"{tuple(mask.shape)} with {int(mask.sum())} kept."
        )
    return mask


def _check_m2(m2: M2, width: int, classifier: nn.Module | None) -> None:
    """Raise an error unless ``m2`` models ``width`` real numbers by the model and guide of M2."""
    if m2.event_shape != (width,):
        raise ValueError(f"m2 must have event_shape=({width},), the active latents of m1; got {tuple(m2.event_shape)}.")
    if type(m2).model is not M2.model or type(m2).guide is not M2.guide:
        raise ValueError(f"{type(m2).__name__} overrides model or guide, which M1M2 does not use; subclass that.")
    if m2.auxiliary is not None:
        raise ValueError("m2 has auxiliary latents, which M1M2 does not draw; build it with auxiliary_dim=0.")
    if (classifier is None) == (m2.classifier is None):
        raise ValueError("For q(y|z1), give an m2 with a classifier; for q(y|x), classifier= and an m2 without one.")
    try:
        m2.check_examples(torch.full((1, width), -0.5, device="cpu"))
    except ValueError as error:
        raise ValueError(f"m2 must have a likelihood of real numbers, such as 'gaussian'. {error}") from error
