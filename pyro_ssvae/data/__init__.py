"""Data: rows of which a few carry labels, the split that decides which, and batches."""

from pyro_ssvae.data.batches import Batch, BatchStream, Rows
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.named import DATASET_NAMES
from pyro_ssvae.data.rows import binarise, images_like, iterate_batches, prepare
from pyro_ssvae.data.splits import LabelSplit, draw_label_split, hide_labels
from pyro_ssvae.data.toy import TOY_DATASETS, draw_ring, draw_spiral, make_toy_data, ring_distribution

__all__ = [
    "DATASET_NAMES",
    "TOY_DATASETS",
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
    "iterate_batches",
    "make_toy_data",
    "prepare",
    "ring_distribution",
]
