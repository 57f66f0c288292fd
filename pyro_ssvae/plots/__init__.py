"""Figures of what a model generates, of how it classifies and of how it was trained.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to no window and no global
state: it works without a display, shows itself at the end of a notebook cell, and is written by
``figure.savefig("name.png")``. The random state of the caller and the training mode of the model
are left as they were; what is drawn at random is fixed by ``seed``.
"""

from pyro_ssvae.plots.autoencoder import (
    plot_autoencoding,
    plot_interpolations,
    plot_prior_samples,
    plot_traversals,
)
from pyro_ssvae.plots.classification import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.energy import Movie, plot_landscape
from pyro_ssvae.plots.features import plot_feature_means
from pyro_ssvae.plots.generator import plot_class_shares, plot_energies, plot_generated, plot_nearest
from pyro_ssvae.plots.images import plot_analogies, plot_reconstructions, plot_samples
from pyro_ssvae.plots.latent import plot_latent_map
from pyro_ssvae.plots.relations import plot_arithmetic, plot_features_and_latents, plot_paths, plot_plane_paths
from pyro_ssvae.plots.run import save_figures

__all__ = [
    "Movie",
    "plot_analogies",
    "plot_arithmetic",
    "plot_autoencoding",
    "plot_class_shares",
    "plot_confusion_matrix",
    "plot_energies",
    "plot_feature_means",
    "plot_features_and_latents",
    "plot_generated",
    "plot_interpolations",
    "plot_landscape",
    "plot_latent_map",
    "plot_nearest",
    "plot_paths",
    "plot_plane_paths",
    "plot_prior_samples",
    "plot_reconstructions",
    "plot_reliability",
    "plot_samples",
    "plot_training_curves",
    "plot_traversals",
    "save_figures",
]
