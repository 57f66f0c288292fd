"""AnnData in memory, backed, and large: genes are taken by name wherever they are read."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, _arrays, fit
from pyro_ssvae.data import ExampleSource, rows, storage
from pyro_ssvae.estimators import M1Transformer
from pyro_ssvae.evaluation import log_likelihood
from tests.data.sources import Chunked

N = 60
GENES = [f"gene {number}" for number in range(6)]
X = np.random.default_rng(0).poisson(2.0, (N, 6)).astype(np.float32)
TYPES = pd.Categorical(np.where(np.arange(N) < 20, np.where(np.arange(N) % 2 == 0, "B", "NK"), None))


def make_cells(x, genes=GENES):
    obs = pd.DataFrame({"type": TYPES}, index=[f"cell {number}" for number in range(N)])
    return SimpleNamespace(X=x, obs=obs, var_names=pd.Index(genes))


def make_backed(x):
    chunked = Chunked(x, 20)
    chunked.to_memory = lambda: x
    return chunked


@pytest.fixture(params=["dense", "backed", "sparse", "large"])
def convert(request, monkeypatch):
    """Return a function that makes ``X`` of an AnnData of an array."""
    if request.param == "large":
        monkeypatch.setattr(storage, "MAX_DENSE", 100)
        monkeypatch.setattr(rows, "MAX_DENSE", 100)
        monkeypatch.setattr(_arrays, "MAX_DENSE", 100)
    kinds = {"dense": np.array, "backed": make_backed, "sparse": sparse.csr_matrix, "large": sparse.csr_matrix}
    return kinds[request.param]


def test_genes_are_taken_by_name(convert):
    from_table = SemiSupervisedData.from_table
    memory = from_table(make_cells(X), "type") if convert is np.array else None
    cells = make_cells(convert(X))
    data = from_table(cells, "type")
    assert memory is None or torch.equal(data.x, memory.x)
    assert (data.feature_names, data.class_names, data.num_labelled) == (tuple(GENES), ("B", "NK"), 20)
    np.testing.assert_array_equal(data.x[:], X)
    model = M2.for_data(data, likelihood="poisson", latent_dim=2, hidden_dims=(4,))
    fit(SemiSupervisedELBO.for_data(model, data), data, TrainingConfig(max_steps=2, device="cpu"), progress=False)
    order = [3, 1, 5, 0, 2, 4]
    more = np.column_stack([X[:, order], np.full(N, 50.0, np.float32)])
    other = make_cells(convert(more), [*(GENES[number] for number in order), "another gene"])
    expected = model.predict_proba(X)
    torch.testing.assert_close(model.predict_proba(cells), expected)
    torch.testing.assert_close(model.predict_proba(other), expected)
    found, known = (log_likelihood(model, x, num_samples=3, common_draws=True).log_px for x in (other, X))
    torch.testing.assert_close(found, known)
    held_out = SemiSupervisedData.from_arrays(cells, TYPES, x_test=other, x_validation=other)
    np.testing.assert_array_equal(held_out.x_test, X)
    np.testing.assert_array_equal(held_out.x_validation, X)
    with pytest.raises(ValueError, match="no column gene 0"):
        model.predict(make_cells(convert(X), [f"Gene {number}" for number in range(6)]))
    with pytest.raises(ValueError, match="Two columns of the table are named gene 1"):
        from_table(make_cells(convert(X), ["gene 1", *GENES[1:]]), "type")
    cells.obs["nothing"] = None
    with pytest.raises(ValueError, match="No row has a label in column nothing"):
        from_table(cells, "nothing")


@pytest.mark.parametrize("convert", [np.array, make_backed, sparse.csr_matrix])
def test_estimators_take_genes_by_name(convert):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m1 = M1Transformer(max_steps=2, random_state=0).fit(make_cells(convert(X)))
        expected = m1.transform(pd.DataFrame(X, columns=GENES))
        for order in (range(6), [3, 1, 5, 0, 2, 4]):
            other = make_cells(convert(X[:, order]), [GENES[number] for number in order])
            np.testing.assert_array_equal(m1.transform(other), expected)


def test_large_cells_in_memory_stay_sparse(monkeypatch):
    for module in (_arrays, rows, storage):
        monkeypatch.setattr(module, "MAX_DENSE", 100)
    cells = make_cells(sparse.csc_matrix(X))
    for data in (SemiSupervisedData.from_table(cells, "type"), SemiSupervisedData.from_arrays(cells, TYPES)):
        assert isinstance(data.x, ExampleSource)
        assert data.feature_names == tuple(GENES)
        np.testing.assert_array_equal(data.x[:], X)


def test_held_out_files_and_tables_are_read_by_the_names_of_their_columns(tmp_path):
    table = pd.DataFrame(X, columns=GENES)
    turned = table[GENES[::-1]]
    turned.to_parquet(tmp_path / "turned.parquet")
    for train, held_out in (
        (table, tmp_path / "turned.parquet"),
        (tmp_path / "turned.parquet", table),
        (table, SimpleNamespace(to_pandas=lambda: turned)),
    ):
        data = SemiSupervisedData.from_arrays(train, x_test=held_out, num_classes=2)
        assert set(data.feature_names) == set(GENES)
        np.testing.assert_array_equal(data.x[:], data.x_test)


def test_a_gene_named_as_the_labels():
    cells = make_cells(X, ["type", *GENES[1:]])
    data = SemiSupervisedData.from_table(cells, "type")
    assert data.feature_names == ("type", *GENES[1:])
    np.testing.assert_array_equal(data.x, X)
    with pytest.raises(ValueError, match=re.escape("A gene and a column of .obs are named type; rename the column.")):
        SemiSupervisedData.from_table(cells, "type", test=cells)
