"""Measure what each option of M2 changes: one at a time, on digits with 50 labels, paired by seed.

python benchmarks/options.py  # 45 minutes on one core; what was measured before is kept
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from runs import make_fits, make_parser
from sklearn.datasets import load_digits
from table_format import DOCS, format_table, load_json
from table_methods import hide_labels

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit

STORE = "benchmarks/options.json"

M2_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "model": [
        *({"prior": name} for name in ("mixture", "vamp", "flow", "student_t")),
        *({"class_prior": name} for name in ("map", "dirichlet")),
        {"classifier": "mlp"},
        {"latent_dim": 5},
        {"hidden_dims": (100,)},
        {"activation": "softplus"},
        {"dropout": 0.2},
    ],
    "objective": [
        {"pure": True},
        *({"alpha": weight} for weight in (1.0, 100.0)),
        *({"bound_weight": weight} for weight in (0.0, 0.1)),
        {"bound_batch_size": 32},
        {"enumeration": "top-k"},
        {"enumeration": "top-k", "top_k": 2},
        {"elbo": "stock"},
        {"analytic_kl": False},
        {"num_particles": 4},
        {"num_particles": 4, "importance_weighted": True},
    ],
    "training": [
        *({"max_steps": steps} for steps in (100, 1000)),
        {"batch_size": 32},
        {"labelled_batch_size": 10},
        *({"learning_rate": rate} for rate in (1e-3, 1e-2)),
        {"warmup_steps": 0},
        {"decay_start": 1.0},
        {"final_learning_rate": 0.0},
        {"weight_decay": 0.1},
        {"gradient_clip": 10.0},
        {"kl_warmup": 0.0},
        {"kl_peak": 8.0},
        {"kl_peak": 8.0, "kl_anneal_end": 1.0},
        {"kl_weight": 4.0},
        {"ema_decay": 0.0},
        {"patience": 3},
        {"binarisation": "dynamic"},
        {"precision": "64-true"},
    ],
}


def run_m2(seed: int, changes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Train M2 with a Bernoulli likelihood on digits, five labels a class; return test error, % and bound, nats."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, validation, test = np.split(order, [int(0.7 * len(x)), int(0.85 * len(x))])
    seen = hide_labels(y[train], 5)
    x = x.reshape(-1, 1, 8, 8) / 16.0
    held_out = {"x_validation": x[validation], "y_validation": y[validation], "x_test": x[test], "y_test": y[test]}
    data = SemiSupervisedData.from_arrays(x[train], seen, **held_out, scale=1.0, seed=seed)
    model = M2.for_data(data, **{"likelihood": "bernoulli"} | changes.get("model", {}))
    objective = SemiSupervisedELBO.for_data(model, data, **changes.get("objective", {}))
    settings = {"device": "cpu", "max_steps": 400} | changes.get("training", {})
    done = fit(objective, data, TrainingConfig(**settings), progress=False)
    error = float((model.predict(data.x_test) != data.y_test).float().mean())
    bound = objective.mean_bound(data.x_test, seed=seed)
    return {"error, %": 100 * error, "bound, nats": bound, "seconds": done.train_seconds}


def compare(before: list[float], after: list[float]) -> str:
    """Return the mean difference, bold where it is more than twice its standard error."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    mean, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    return f"**{mean:+.2f}**" if abs(mean) > 2 * error else f"{mean:+.2f}"


def make_tables(docs: Path) -> dict[str, str]:
    """Return what each option changes: means of the paired differences, and the ratio of times."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for key, values in load_json(docs / STORE, {}).items():
        found[key.split("/")[1]].append(values)
    names, rows = ("error, %", "bound, nats"), []
    if default := found.pop("default", []):
        rows = [["*default*", *(f"{statistics.mean(one[name] for one in default):.2f}" for name in names), "1.0"]]
    for option, runs in found.items():
        cells = [compare([one[name] for one in default], [one[name] for one in runs]) for name in names]
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(default, runs, strict=True)]
        rows.append([f"`{option}`", *cells, f"{statistics.median(ratios):.1f}"])
    return {"options_m2": format_table(["option", *names, "time"], rows)}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    changes: dict[str, Any] = {"default": {}}
    for kind, settings in M2_OPTIONS.items():
        changes |= {", ".join(f"{k}={v}" for k, v in one.items()): {kind: one} for one in settings}
    seeds = range(args.seeds or 3)
    fits = {f"m2/{name}/{seed}": partial(run_m2, seed, change) for name, change in changes.items() for seed in seeds}
    make_fits(DOCS / STORE, fits, args.only)


if __name__ == "__main__":
    main()
