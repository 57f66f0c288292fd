"""Figures of models, their samples, classifications and training.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to no window and no global state: it works
without a display, is shown at the end of a notebook cell, and is written by ``figure.savefig("name.png")``. The random
state of the caller and the training mode of the model are left as they were.

These arguments mean the same everywhere:

- ``x``: examples with shape ``(N, *event_shape)``, floating point, scaled as in training.
- ``y``: their classes, with shape ``(N,)``, as an array, a tensor on any device or a list; -1 where unknown.
- ``class_names``: a name for each of the ``K`` classes; without them, their numbers.
- ``value_range``: the values of x shown as black and as white.
- ``seed``: of everything drawn at random. The same seed and model give the same figure.

Up to ten classes have colours that can be told apart, also with the common colour-vision deficiencies; more have those
of a continuous map, in which neighbours look alike.

The figures of a run have a red line under the title where the KL of z of held-out examples is below 1 nat, and where
the variance over y of means of p(x|y,z) at the same z is less than 1 % of the variance of x.

Examples that are no floating-point tensor, and labels and counts that are no (whole) numbers, raise ``TypeError``.
Examples that are no images where images are drawn, and arguments that do not fit each other or the model, raise
``ValueError``.
"""

from pyro_ssvae.plots.classes import plot_confusion_matrix, plot_feature_means, plot_latent_map, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.ddgm import plot_features_and_latents, plot_landscape, plot_nearest
from pyro_ssvae.plots.figures import figures
from pyro_ssvae.plots.images import plot_analogies, plot_interpolations, plot_reconstructions, plot_samples

__all__ = [
    "figures",
    "plot_analogies",
    "plot_confusion_matrix",
    "plot_feature_means",
    "plot_features_and_latents",
    "plot_interpolations",
    "plot_landscape",
    "plot_latent_map",
    "plot_nearest",
    "plot_reconstructions",
    "plot_reliability",
    "plot_samples",
    "plot_training_curves",
]
