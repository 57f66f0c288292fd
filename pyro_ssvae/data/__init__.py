"""Data: examples of which a few are labelled, the split that chooses them, and batches."""

from pyro_ssvae.data.batches import Batch, BatchStream
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.named import DATASET_NAMES
from pyro_ssvae.data.preparation import binarise, iterate_batches, prepare
from pyro_ssvae.data.splits import LabelSplit, draw_label_split, hide_labels
from pyro_ssvae.data.toy import make_toy_data, ring_distribution

__all__ = [
    "DATASET_NAMES",
    "Batch",
    "BatchStream",
    "LabelSplit",
    "SemiSupervisedData",
    "binarise",
    "draw_label_split",
    "hide_labels",
    "iterate_batches",
    "make_toy_data",
    "prepare",
    "ring_distribution",
]
