"""Figures of models, their samples, classifications and training.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to no window and no global state: it works
without a display, is shown at the end of a notebook cell, and is written by ``figure.savefig("name.png")``. The random
state of the caller and the training mode of the model are left as they were; ``seed`` fixes what is drawn at random.
"""

from pyro_ssvae.plots.classification import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.ddgm import plot_energies, plot_features_and_latents, plot_nearest
from pyro_ssvae.plots.ddgm_toy import plot_landscape
from pyro_ssvae.plots.feature_means import plot_feature_means
from pyro_ssvae.plots.figures import figures, save_figures
from pyro_ssvae.plots.images import (
    plot_analogies,
    plot_interpolations,
    plot_reconstructions,
    plot_samples,
    plot_traversals,
)
from pyro_ssvae.plots.latent import plot_latent_map

__all__ = [
    "figures",
    "plot_analogies",
    "plot_confusion_matrix",
    "plot_energies",
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
    "plot_traversals",
    "save_figures",
]
