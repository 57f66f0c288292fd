"""Estimators in the manner of scikit-learn: the models, objectives and training loop of this package."""

from pyro_ssvae.estimators.classifiers import M1M2Classifier, M2Classifier
from pyro_ssvae.estimators.unsupervised import DDGMDensity, M1Transformer

__all__ = ["DDGMDensity", "M1M2Classifier", "M1Transformer", "M2Classifier"]
