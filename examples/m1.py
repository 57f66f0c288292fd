"""Train M1, a variational autoencoder (Kingma & Welling 2013), and show what its latents hold.

    python examples/m1.py                            # MNIST, the M1 of Kingma et al. 2014
    python examples/m1.py --data digits --likelihood gaussian --training.kl_warmup 0.3
    python examples/m1.py --preset musyoku           # two latents, for a map
    python examples/m1.py --prior vamp --importance-weighted --num-particles 5
    python examples/m1.py --resume runs/...          # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json.
"""

from __future__ import annotations

import sys

import pyro
from torch import Tensor

from pyro_ssvae import M1, UnsupervisedELBO, fit, report
from pyro_ssvae.cli import EXPECTED_ERRORS, load_data, parse_m1, settings, training_config
from pyro_ssvae.models import data_plate


class MyM1(M1):
    """M1 with its generative story in view. Change a line of it, and the model is yours."""

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        """Say how rows come about: a code z, and pixels x given it. The guide (inherited) explains them by q(z|x)."""
        with data_plate(x, size):  # B rows that stand for `size`
            z = pyro.sample("z", self.prior())  # p(z)
            pyro.sample("x", self.decode(z), obs=x)  # p(x|z)


def main(argv: list[str] | None = None) -> int:
    """Run the whole story and return the exit status."""
    args = parse_m1(__doc__, argv)
    try:
        data = load_data(args, "m1").without_labels()
        print(f"{data.name}: {len(data.x)} rows to train on, ", end="")
        print(f"{len(data.x_validation)} to validate, {len(data.x_test)} to test")

        # The module p(z)p(x|z) and q(z|x).
        pyro.set_rng_seed(args.seed)
        model = MyM1(
            data.event_shape,
            latent_dim=args.latent_dim,
            hidden_dims=args.hidden_dims,
            activation=args.activation,
            batch_norm=args.batch_norm,
            likelihood=args.likelihood,
            prior=args.prior,
        )

        # The negative bound: -E[log p(x|z)] + KL(q(z|x) || p(z)), in nats per datum.
        objective = UnsupervisedELBO.for_data(
            model, data, num_particles=args.num_particles, importance_weighted=args.importance_weighted
        )
        run = fit(
            objective,
            data,
            training_config(args),
            out=args.out,
            resume=args.resume is not None,
            settings=settings(args),
        )
        if not run.finished:
            print(
                f"Stopped by {run.stopped_by} at step {run.steps}. Go on with: python {sys.argv[0]} --resume {args.out}"
            )
            return 130
        result = report(objective, data, run, seed=args.seed, num_samples=args.num_samples)
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    print(f"M1 on {data.name}, {result['loss']}, {result['train_seconds']:.0f} s of training")
    if result["test/bound"] is not None:
        print(f"test rows: bound {result['test/bound']:.2f} nats per datum, of it KL {result['kl_z']:.2f}", end="")
        print(f", {result['active_units']} of {model.latent_dim} latents in use")
    if result["test/log_likelihood"] is not None:
        error = result["test/log_likelihood_error"]  # none of a single sample
        spread = "" if error is None else f" ± {error:.2f}"
        print(f"log p(x) {result['test/log_likelihood']:.2f}{spread} nats by {args.num_samples} samples a row")
    print(f"figures in {args.out}/figures, numbers in {args.out}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
