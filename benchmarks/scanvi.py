"""SCANVI of scvi-tools with its defaults, for tables.py: a script for an environment of its own, without this package.

    python benchmarks/scanvi.py ROWS.npz FOUND.npz SEED

ROWS.npz holds counts ``x`` and ``x_test``, and classes ``seen`` from 0, -1 for no label. FOUND.npz gets the predicted
classes ``y`` of the test rows, and ``seconds`` of processor time of training and prediction on one thread.
"""

import sys
import time

import anndata
import numpy as np
import scvi
import torch

torch.set_num_threads(1)
scvi.settings.seed = int(sys.argv[3])
with np.load(sys.argv[1]) as rows:
    x, seen, x_test = rows["x"], rows["seen"], rows["x_test"]
started = time.process_time()
train, test = (anndata.AnnData(rows.astype(np.float32)) for rows in (x, x_test))
train.obs["type"], test.obs["type"] = np.array(["unknown" if k < 0 else str(k) for k in seen]), "unknown"
scvi.model.SCVI.setup_anndata(train, labels_key="type")
first = scvi.model.SCVI(train)
first.train(accelerator="cpu", enable_progress_bar=False)
model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category="unknown")
model.train(accelerator="cpu", enable_progress_bar=False)
y = np.asarray(model.predict(test)).astype(int)
np.savez(sys.argv[2], y=y, seconds=time.process_time() - started)
