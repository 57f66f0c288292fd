"""Time the commands that a reader would run, from start to figures, on all cores and with nothing beside them.

    python benchmarks/times_ddgm.py                   # ring, spiral and MNIST, then docs/results_ddgm.md
    python benchmarks/times_ddgm.py --only mnist

Loading, training, the classifier that judges digits, measures, figures and the movie are all within these seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results_page_ddgm import write_page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
COMMANDS = {
    "ring": ["examples/ddgm_2d.py", "--data", "ring"],
    "spiral": ["examples/ddgm_2d.py", "--data", "spiral"],
    "mnist": ["examples/ddgm.py", "--data", "mnist"],
}


def run(command: list[str], data_dir: str | None) -> dict[str, Any]:
    """Run an example of the repository and return its seconds, those of its training, and on what it ran."""
    place = ["--data-dir", data_dir] if data_dir and command[-1] == "mnist" else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command, *place, "--device", "cpu", "--out", folder], cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        found = json.loads((Path(folder) / "result.json").read_text())
    kept = {name: found[name] for name in ("train_seconds", "device")}
    return {"command": f"python {' '.join(command)}", "seconds": round(seconds, 1), **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--only", choices=list(COMMANDS), help="one of them")
    args = parser.parse_args()
    for name in [args.only] if args.only else COMMANDS:
        result = run(COMMANDS[name], args.data_dir)
        print(json.dumps(result, indent=1))
        (RESULTS / f"time-ddgm-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
