"""Search settings of M2 on digits by Optuna: several processes at once, and trials that are behind are pruned.

python benchmarks/search.py --trials 20 --processes 2  # three minutes on two cores; the same command goes on
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import optuna

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit

_NAME = "m2-digits"
_STEPS = 200


def run_trial(trial: optuna.Trial) -> float:
    """Train M2 with settings that the trial suggests; return the validation error of the chosen weights."""
    data = SemiSupervisedData.from_name("digits", num_labels=50)
    model = M2.for_data(data, latent_dim=trial.suggest_int("latent_dim", 4, 64, log=True), hidden_dims=(128,))
    alpha = trial.suggest_float("alpha", 0.1, 100.0, log=True)
    objective = SemiSupervisedELBO.for_data(model, data, alpha=alpha)
    rate = trial.suggest_float("learning_rate", 3e-4, 3e-2, log=True)
    errors: list[float] = []

    def prune(_: M2, metrics: dict[str, Any]) -> None:
        errors.append(metrics["val/error"])
        trial.report(errors[-1], metrics["step"])
        if trial.should_prune():
            raise optuna.TrialPruned

    config = TrainingConfig(max_steps=_STEPS, learning_rate=rate, device="cpu")
    fit(objective, data, config, progress=False, on_evaluation=prune, devices=1)
    return min(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="in all, of all processes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--storage", default="sqlite:///search.db")
    args = parser.parse_args()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=_STEPS // 4)
    study = optuna.create_study(study_name=_NAME, storage=args.storage, pruner=pruner, load_if_exists=True)
    command = [sys.executable, __file__, "--trials", str(args.trials), "--storage", args.storage]
    others = [subprocess.Popen(command) for _ in range(args.processes - 1)]
    enough = optuna.study.MaxTrialsCallback(args.trials, states=None)
    while len(study.trials) < args.trials:
        study.optimize(run_trial, n_trials=1, callbacks=[enough])
    for other in others:
        other.wait()
    states = [trial.state.name.lower() for trial in study.trials]
    print({state: states.count(state) for state in set(states)}, study.best_value, study.best_params)


if __name__ == "__main__":
    main()
