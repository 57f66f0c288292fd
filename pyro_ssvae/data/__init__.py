"""Data: examples of which a few are labelled, the split that chooses them, and batches."""

from pyro_ssvae.data.preparation import Batch, BatchStream
from pyro_ssvae.data.storage import ExampleSource
from pyro_ssvae.data.toy import make_toy_data, ring_distribution

__all__ = ["Batch", "BatchStream", "ExampleSource", "make_toy_data", "ring_distribution"]
