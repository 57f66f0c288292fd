"""SCANVI of scvi-tools with its defaults, for cells.py: a script for an environment of its own, without this package.

    python benchmarks/scanvi.py ROWS.npz FOUND.npz SEED

ROWS.npz holds counts ``x`` and ``x_test``, and classes ``seen`` from 0, -1 for no label. FOUND.npz gets the predicted
classes ``y`` of the test rows, and ``seconds`` of processor time of training and prediction on one thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np


def predict(x: Any, seen: Any, x_test: Any, seed: int) -> dict[str, Any]:
    """Return predicted classes of the test rows, and seconds without imports."""
    import anndata
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = seed
    names = np.array(["unknown" if k < 0 else str(k) for k in seen])
    started = time.process_time()
    train, test = (anndata.AnnData(rows.astype(np.float32)) for rows in (x, x_test))
    train.obs["type"], test.obs["type"] = names, "unknown"
    scvi.model.SCVI.setup_anndata(train, labels_key="type")
    first = scvi.model.SCVI(train)
    first.train(accelerator="cpu", enable_progress_bar=False)
    model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category="unknown")
    model.train(accelerator="cpu", enable_progress_bar=False)
    y = np.asarray(model.predict(test)).astype(int)
    return {"y": y, "seconds": time.process_time() - started}


if __name__ == "__main__":
    with np.load(sys.argv[1]) as rows:
        np.savez(sys.argv[2], **predict(rows["x"], rows["seen"], rows["x_test"], int(sys.argv[3])))
