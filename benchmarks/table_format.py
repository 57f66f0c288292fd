"""Tables in Markdown: a line for each configuration, made from the results of its seeds."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"

Result = dict[str, Any]
Results = dict[str, list[Result]]  # by family and name of the configuration, in the order of the seeds
Column = Callable[[list[Result]], str]  # formats one cell from the results of a configuration


def load_results(folder: Path) -> Results:
    found: dict[str, dict[int, Result]] = defaultdict(dict)
    for path in folder.glob("*.json"):
        if parts := re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]{10}", path.stem):
            found[parts[1]][int(parts[2])] = json.loads(path.read_text())
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in found.items()}


def load_json(path: Path, missing: Any) -> Any:
    """Return the content of a file, or ``missing`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else missing


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or the empty string without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines]) if lines else ""


def build_table(results: Results, first: str, rows: dict[str, str], columns: dict[str, Column]) -> str:
    """Return a Markdown table: ``first`` is the header of the first column, whose cells are those of ``rows``."""
    present = [(words, results[name]) for name, words in rows.items() if results.get(name)]
    lines = [[words, *(column(group) for column in columns.values())] for words, group in present]
    return format_table([first, *columns], lines)


def fill_table(entries: Iterable[Result], columns: dict[str, str]) -> str:
    """Return a table with a line for each entry; columns are format strings of its values by their header."""
    return format_table([*columns], [[cell.format(**entry) for cell in columns.values()] for entry in entries])


def mark(table: str, best: Callable[[list[float]], float]) -> str:
    """Return a table of numbers with the best of each line in bold."""
    head, rows = table.splitlines()[:2], [line[2:-2].split(" | ") for line in table.splitlines()[2:]]
    for row in rows:
        number = best([float(cell) for cell in row[1:]])
        row[1:] = [f"**{cell}**" if float(cell) == number else cell for cell in row[1:]]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])
