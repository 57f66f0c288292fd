"""Memory and speed of training on large data, as docs/scale.md describes it: by files, rows, columns and classes.

python benchmarks/scale.py --keep DIR  # 20 GB in DIR for a while; some fifteen minutes on one core
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import call_apart, describe, get_memory
from numpy.typing import NDArray
from runs import make_fits, make_parser
from table_format import DOCS, fill_table, load_json
from torch.utils.data import Subset

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.data import BatchStream, storage
from pyro_ssvae.plots.style import ACCENT, FAINT, new_axes, save_figure, style_axes

STORE = "benchmarks/scale.json"
ROWS, COLUMNS, BLOCK = 10_000_000, 500, 100_000  # of the file; rows of it that are drawn, and repeated
SIZES = {
    "rows": (10_000, 100_000, 1_000_000, 10_000_000),
    "columns": (10, 100, 1000, 10_000),
    "classes": (10, 100, 1000, 10_000),
}


def draw(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((rows, columns), dtype=np.float32)


def draw_labels(rows: int, classes: int = 4, labels: int = 200) -> NDArray[np.int64]:
    """Return labels of the first rows, and -1 for all others."""
    y = np.full(rows, -1)
    y[:labels] = np.arange(rows)[:labels] % classes
    return y


def train(data: SemiSupervisedData, steps: int, enumeration: str = "exact", **options: Any) -> float:
    """Return the milliseconds of a step of the default M2."""
    model = M2.for_data(data, **options)
    objective = SemiSupervisedELBO.for_data(model, data, enumeration=enumeration)
    done = fit(objective, data, TrainingConfig(max_steps=steps), progress=False)
    return 1000.0 * done.train_seconds / done.steps


def read_pass(data: SemiSupervisedData, batch_size: int = 1000) -> dict[str, Any]:
    """Return seconds of a pass over data, and the memory in MiB after each fiftieth part of it."""
    stream, memory, started = BatchStream(data, batch_size=batch_size), [], time.perf_counter()
    every = max(1, stream.steps_per_epoch // 50)
    for number, _ in enumerate(itertools.islice(stream, stream.steps_per_epoch)):
        if number % every == 0:
            memory.append(get_memory())
    return {"seconds": time.perf_counter() - started, "memory_mib": memory}


def measure_disk(folder: Path, steps: int = 1000) -> dict[str, Any]:
    """Return memory and seconds of a pass over a file, and milliseconds of training on it and in memory, in turn."""
    base = get_memory()
    data = SemiSupervisedData.from_arrays(folder / "x.npy", draw_labels(ROWS))
    found = {"gigabytes": 4 * COLUMNS * ROWS / 1e9, "rows": ROWS, "base_mib": base, **read_pass(data)}
    found["disk_ms"] = [train(data, steps) for _ in range(2)]
    found["peak_mib"] = get_memory("VmHWM")
    x = np.load(folder / "x.npy", mmap_mode="r")[:BLOCK].copy()
    small = SemiSupervisedData.from_arrays(x, draw_labels(len(x)))
    for _ in range(3):
        found.setdefault("memory_ms", []).append(train(small, steps))
        found["disk_ms"].append(train(data, steps))
    return found


def measure_first_step(likelihood: str, rows: int = 1_000_000) -> dict[str, Any]:
    """Return seconds from an array of 100 columns to the end of the first step, and the growth of memory in MiB."""
    x, y = draw(rows, 100), draw_labels(rows)
    base, started = get_memory("VmHWM"), time.perf_counter()
    train(SemiSupervisedData.from_arrays(x, y), 1, likelihood=likelihood)
    seconds = time.perf_counter() - started
    return {"likelihood": likelihood, "seconds": seconds, "grown_mib": get_memory("VmHWM") - base}


def measure_sources(folder: Path, rows: int = 200_000) -> list[dict[str, Any]]:
    """Return rows and bytes per second of one pass over each kind of source; a tenth of the values are not zero."""
    import pandas as pd
    from PIL import Image
    from scipy import sparse

    x = draw(rows, COLUMNS)
    x *= x < 0.1
    np.save(folder / "one.npy", x)
    (folder / "many").mkdir()
    for number, part in enumerate(np.array_split(x, 8)):
        np.save(folder / "many" / f"{number}.npy", part)
    pd.DataFrame(x).rename(columns=str).to_parquet(folder / "x.parquet", row_group_size=10_000)
    sparse.save_npz(folder / "x.npz", sparse.csr_matrix(x), compressed=False)
    for number in range(2000):
        Image.fromarray((x[number, :484] * 2550).astype("u1").reshape(22, 22)).save(folder / "many" / f"{number}.png")
    read = SemiSupervisedData.from_arrays
    storage.MAX_DENSE = 0  # data sets of any size are read item by item
    images: dict[str, Any] = {"image_size": 22, "num_validation": 0, "on_disk": True}
    makers: dict[str, Callable[[], SemiSupervisedData]] = {
        "in memory": lambda: read(x),
        "`.npy`": lambda: read(folder / "one.npy"),
        "folder of `.npy`": lambda: read(folder / "many"),
        "Parquet": lambda: read(folder / "x.parquet"),
        "sparse `.npz`": lambda: read(folder / "x.npz"),
        "data set of PyTorch": lambda: read(Subset(torch.from_numpy(x), range(rows))),
        "PNG images": lambda: SemiSupervisedData.from_folder(folder / "many", **images),
    }
    found = []
    for kind, make in makers.items():
        data = make().without_labels()
        seconds = min(read_pass(data, 100)["seconds"] for _ in range(2))
        per_second = data.num_unlabelled / seconds
        size = data.x[0].numel() * data.x[:1].element_size()
        found.append({"kind": kind, "rows_per_second": per_second, "mb_per_second": per_second * size / 1e6})
    return found


def measure_steps(steps: int = 100) -> list[dict[str, Any]]:
    """Return milliseconds of a step with one of rows, columns and classes varied, the others at their defaults."""
    train(SemiSupervisedData.from_arrays(draw(1000, 5), draw_labels(1000)), 5)  # modules are imported
    found = []
    for varied, value in [(varied, value) for varied, values in SIZES.items() for value in values]:
        size = {"rows": 20_000, "columns": 20 if varied == "rows" else 100, "classes": 10} | {varied: value}
        y = draw_labels(size["rows"], size["classes"], max(200, size["classes"]))
        data = SemiSupervisedData.from_arrays(draw(size["rows"], size["columns"]), y, num_classes=size["classes"])
        milliseconds = train(data, steps, "top-k" if varied == "classes" else "exact")
        found.append({"varied": varied, "value": value, "milliseconds": milliseconds})
    return found


def write_and_measure(folder: Path) -> dict[str, Any]:
    """Write the file, and measure it in a process whose memory is that of reading and training alone."""
    block = draw(BLOCK, COLUMNS)
    with open(folder / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (ROWS, COLUMNS)})
        for _ in range(ROWS // BLOCK):
            block.tofile(file)
    found = call_apart(1, measure_disk, folder)
    draw_memory(found)
    return found


DISK = {
    "file": "{gigabytes:g} GB, {rows:,} rows",
    "memory before": "{base_mib:,} MiB",
    "largest memory": "{peak_mib:,} MiB",
    "one pass in batches of 1,000": "{seconds:.0f} s",
    "a step of M2 from disk": "{from_disk:.1f} ms",
    "a step in memory": "{in_memory:.1f} ms",
}
SOURCES = {"source": "{kind}", "rows a second": "{rows_per_second:,.0f}", "MB a second": "{mb_per_second:,.0f}"}
FIRST_STEP = {
    "likelihood": "`{likelihood}`",
    "seconds": "{seconds:.1f}",
    "memory beyond the array, MiB": "{grown_mib:,}",
}
STEP_TIMES = {"": "{value:,} {varied}", "milliseconds of a step": "{milliseconds:.1f}"}


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/scale.md on data, from the file of results."""
    found = load_json(docs / STORE, {})
    disk = [found["disk"]] if "disk" in found else []
    for one in disk:
        one |= {"from_disk": statistics.median(one["disk_ms"]), "in_memory": statistics.median(one["memory_ms"])}
    return {
        "scale_disk": fill_table(disk, DISK),
        "scale_sources": fill_table(found.get("sources", []), SOURCES),
        "scale_first_step": fill_table(found.get("first_step", []), FIRST_STEP),
        "scale_steps": fill_table(found.get("steps", []), STEP_TIMES),
    }


def draw_memory(disk: dict[str, Any]) -> None:
    """Draw memory during the pass over the file."""
    figure, axes = new_axes(4.6, 2.6)
    read = np.linspace(0.0, disk["gigabytes"], len(disk["memory_mib"]))
    axes.plot(read, disk["memory_mib"], color=ACCENT)
    axes.axhline(disk["base_mib"], color=FAINT, linewidth=0.8, linestyle=":")
    axes.annotate("before", (read[-1], disk["base_mib"]), ha="right", va="top", fontsize=8, color=FAINT)
    axes.set(xlabel="GB read", ylabel="memory of the process, MiB", ylim=(0, 1.3 * max(disk["memory_mib"])))
    style_axes(axes, grid=True)
    save_figure(figure, DOCS / "_static" / "scale-memory.png")


def main() -> None:
    args = make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # of classes without labels
    with tempfile.TemporaryDirectory(dir=args.keep) as name:
        folder = Path(name)
        fits: dict[str, Callable[[], Any]] = {
            "machine": lambda: describe("cpu"),
            "steps": measure_steps,
            "sources": lambda: measure_sources(folder),
            "first_step": lambda: [call_apart(1, measure_first_step, name) for name in ("gaussian", "auto")],
            "disk": lambda: write_and_measure(folder),
        }
        make_fits(DOCS / STORE, fits, args.only)


if __name__ == "__main__":
    main()
