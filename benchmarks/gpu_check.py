"""Measure everything that a GPU is for, in six pieces of at most 8 minutes each; most important first.

    python benchmarks/gpu_check.py --data-dir DIR                # all pieces
    python benchmarks/gpu_check.py --data-dir DIR --only step    # one of tests, step, train, m1, ddgm, scale

Each prints a table and writes it to OUT/PIECE.json after every line. The exit status is 1 if a part failed or missed
its target. ``--device cpu --tiny`` rehearses a piece on a CPU within two minutes. docs/benchmarks.md says what the
machine needs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import describe

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae._io import write_json
from pyro_ssvae.errors import DataUnavailableError

MINUTES = 8.0  # per piece; parts that would start later are left out


class Report:
    """Where and how large a piece runs, and its table, which is printed and written to a file line by line."""

    def __init__(self, piece: str, args: argparse.Namespace) -> None:
        self.device, self.tiny, self.data_dir = args.device, args.tiny, args.data_dir
        self.cuda, self.started = args.device == "cuda", time.perf_counter()
        machine, self.lines, self.path = describe(args.device), [], args.out / f"{piece}.json"
        self.content = {"piece": piece, "tiny": args.tiny, "machine": machine, "finished": False, "lines": self.lines}
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"\n## {piece}: {machine}\n\n| what | value | target |\n| --- | --- | --- |", flush=True)

    def choose(self, full: Any, tiny: Any) -> Any:
        """Return the value for a measurement, or the one for a rehearsal."""
        return tiny if self.tiny else full

    def load(self, num_labels: int | str = 100) -> SemiSupervisedData:
        """Return MNIST, or random pixels if it is not there; 2,000 examples of it in a rehearsal."""
        try:
            data = SemiSupervisedData.from_name("mnist", num_labels=num_labels, data_dir=self.data_dir)
        except DataUnavailableError as error:
            print(f"{error} Using random pixels instead.", file=sys.stderr)
            x, y = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8), torch.arange(60_000) % 10
            held_out = {"x_validation": x[:1000], "y_validation": y[:1000], "x_test": x[50_000:], "y_test": y[50_000:]}
            kept = y if num_labels == "all" else torch.where(torch.arange(60_000) < int(num_labels), y, -1)
            data = SemiSupervisedData.from_arrays(x[:50_000], kept[:50_000], **held_out)
        if not self.tiny:
            return data
        order = torch.cat([data.labelled_index[:500], (data.y < 0).nonzero()[:, 0]])[:2000]
        held_out = {name: getattr(data, name)[:100] for name in ("x_validation", "y_validation", "x_test", "y_test")}
        return replace(data, x=data.x[order], y=data.y[order], split=None, **held_out)

    def add(self, what: str, value: Any, target: str = "", passed: bool | None = None, **more: Any) -> None:
        """Add a line: what was measured, its value, the target, whether it was met, and more entries for the file."""
        line = {"what": what, "value": value, "target": target, "passed": passed}
        self.lines.append({**line, "at_second": round(time.perf_counter() - self.started, 1), **more})
        verdict = "" if passed is None else " (met)" if passed else " (**missed**)"
        text = f"{value:.4g}" if isinstance(value, float) else value
        print(f"| {what} | {text} | {target}{verdict} |", flush=True)
        write_json(self.path, self.content)

    def add_limited(self, what: str, value: float, most: float, **more: Any) -> None:
        """Add a line whose value should be at most ``most``, which is infinite where there is no target."""
        limited = most < math.inf
        self.add(what, value, f"≤ {most:g}" if limited else "", value <= most if limited else None, **more)

    def try_part(self, name: str, part: Callable[..., object], *args: Any) -> None:
        """Call ``part(*args)``; an exception becomes a line, and no part starts after the time of the piece."""
        if time.perf_counter() - self.started > 60.0 * MINUTES:
            self.add(name, f"not run: {MINUTES:g} minutes are over")
            return
        try:
            part(*args)
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.add(name, text, "runs", False, traceback=traceback.format_exc())
        if self.cuda:
            torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> int:
    from gpu_pieces import PIECES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PIECES, help="run this piece alone; repeatable")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), metavar="DIR", help="folder of the results")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse: few steps, small models")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; rehearse with --device cpu --tiny.")
    failed = False
    for name in args.only or PIECES:
        report = Report(name, args)
        PIECES[name](report)
        report.content["finished"] = True
        write_json(report.path, report.content)
        failed |= any(line["passed"] is False for line in report.lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
