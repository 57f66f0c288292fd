"""Data: rows of which a few carry labels, the split that decides which, and batches."""

from pyro_ssvae.data.batches import Batch, BatchStream, Rows
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.named import DATASET_NAMES
from pyro_ssvae.data.plane import PLANE_NAMES, draw_ring, draw_spiral, plane_data, ring_distribution
from pyro_ssvae.data.rows import binarise, images_like, iterate_rows, prepare
from pyro_ssvae.data.splits import LabelSplit, draw_label_split, hide_labels

__all__ = [
    "DATASET_NAMES",
    "PLANE_NAMES",
    "Batch",
    "BatchStream",
    "LabelSplit",
    "Rows",
    "SemiSupervisedData",
    "binarise",
    "draw_label_split",
    "draw_ring",
    "draw_spiral",
    "hide_labels",
    "images_like",
    "iterate_rows",
    "plane_data",
    "prepare",
    "ring_distribution",
]
