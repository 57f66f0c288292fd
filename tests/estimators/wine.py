"""Wines, few of them labelled, and settings of short fits."""

from typing import Any

import numpy as np
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

X, Y = load_wine(return_X_y=True)
X = StandardScaler().fit_transform(X)
FEW = np.where(np.arange(len(Y)) % 9 == 0, Y, -1)
QUICK: dict[str, Any] = {"max_steps": 160, "learning_rate": 0.01, "random_state": 0, "hidden_dims": (32,)}
QUICK |= {"device": "cpu"}
BRIEF = QUICK | {"max_steps": 5}  # for what does not depend on how well it is trained
