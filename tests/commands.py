"""Commands in this process: the flags of a short training, and the programs of ``examples/`` as modules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

Call = Callable[..., Any]  # of the fixture ``call``
TINY = "--data digits --max-epochs 1 --latent-dim 2 --hidden-dims [8] --device cpu".split()
FOLDER = Path(__file__).parents[1] / "examples"


@cache
def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_example", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
