"""One base class of errors."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_ssvae import M1, PyroSSVAEError, SemiSupervisedData, errors
from pyro_ssvae.estimators import M1Transformer, M2Classifier


@pytest.mark.parametrize(
    ("error", "other_base"),
    [
        (errors.DataUnavailableError("no data"), RuntimeError),
        (errors.EnumerationError(["z"]), RuntimeError),
        (errors.MissingPackageError("no pandas"), ImportError),
        (errors.NonFiniteLossError(3, Path("last.pt")), RuntimeError),
        (errors.RunFolderError("no folder"), RuntimeError),
        (errors.StaticELBOError("Two sites."), NotImplementedError),
        (errors.TrainingFailedError(3, "the generator has collapsed", None), RuntimeError),
    ],
)
def test_every_error_has_the_base_class(error: Exception, other_base: type[Exception]) -> None:
    for base in (PyroSSVAEError, other_base):
        with pytest.raises(base):
            raise error


def test_no_error_is_left_out() -> None:
    classes = inspect.getmembers(errors, lambda value: inspect.isclass(value) and issubclass(value, Exception))
    assert {name for name, _ in classes if not name.startswith("_")} == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), PyroSSVAEError) for name in errors.__all__)


def test_errors_of_training_hold_step_and_checkpoint() -> None:
    error = errors.NonFiniteLossError(3, Path("last.pt"))
    assert (error.step, error.checkpoint) == (3, Path("last.pt"))
    assert "from step 3 on. The last good checkpoint is last.pt. Try" in str(error)
    failed = str(errors.TrainingFailedError(7, "energies diverge", None))
    assert failed == "Training stopped at step 7: energies diverge. No checkpoint was written before."


ROWS = np.random.default_rng(0).normal(size=(60, 5))
FAR = np.append(np.arange(11.0), 9999.0)[:, None]


@pytest.mark.parametrize(
    "call",
    [
        lambda: SemiSupervisedData.from_arrays(FAR),
        lambda: SemiSupervisedData.from_table(pd.DataFrame(FAR)),
        lambda: M1Transformer(max_steps=1).fit(FAR),
        lambda: SemiSupervisedData.from_arrays(np.arange(4.0)[:, None], [0, 1, 3, -1]),
        lambda: M1.for_data(SemiSupervisedData.from_table(pd.DataFrame({"a": ["b", "c", "d"]}))),
        lambda: M1((2,)).likelihood.fit_units(torch.full((4, 2), 0.5)),
        lambda: M1Transformer(max_steps=3).fit(ROWS).transform(np.full((1, 5), np.nan)),
        lambda: make_pipeline(StandardScaler(), M2Classifier(max_steps=3)).fit(ROWS, np.arange(60) % 2),
    ],
)
def test_warnings_name_the_line_of_the_caller(call) -> None:
    with pytest.warns(UserWarning, match="9999|numbered from 0|codes|0.1 and 0.9|missing|every example") as caught:
        call()
    assert {warning.filename for warning in caught} == {__file__}
