"""Figures of models, their samples, classifications and training.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to no window and no global state: it works
without a display, is shown at the end of a notebook cell, and is written by ``figure.savefig("name.png")``. The random
state of the caller and the training mode of the model are left as they were; ``seed`` fixes what is drawn at random.
"""

from pyro_ssvae.plots import ddgm as _ddgm  # noqa: F401  (registers its figures)
from pyro_ssvae.plots.classification import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.energy import Movie, plot_landscape
from pyro_ssvae.plots.figures import figures, save_figures
from pyro_ssvae.plots.generator import plot_class_shares, plot_energies, plot_generated, plot_nearest
from pyro_ssvae.plots.images import plot_reconstructions, plot_samples
from pyro_ssvae.plots.latent import plot_latent_map
from pyro_ssvae.plots.m1 import plot_interpolations, plot_traversals
from pyro_ssvae.plots.m2 import plot_analogies, plot_feature_means
from pyro_ssvae.plots.relations import plot_arithmetic, plot_features_and_latents, plot_paths, plot_plane_paths

__all__ = [
    "Movie",
    "figures",
    "plot_analogies",
    "plot_arithmetic",
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
    "plot_reconstructions",
    "plot_reliability",
    "plot_samples",
    "plot_training_curves",
    "plot_traversals",
    "save_figures",
]
