"""Writing the page: templates, runtime and payload in one file."""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pyro_ssvae._io import write_atomically
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.explorer.payload import Payload
from pyro_ssvae.export import as_onnx

__all__ = ["SCRIPTS", "write_page"]

SCRIPTS = ("core", "model", "map", "decode", "answer", "own_image", "own_row", "ddgm", "main")
"""The scripts of the page, which share one scope, in their order."""

_VENDORED = {"ort": "ort.wasm.bundle.min.mjs.gz", "wasm": "ort-wasm-simd-threaded.wasm.gz"}


def write_page(path: Path, payload: Payload) -> Path:
    """Write the page and return its path.

    Raises:
        RunFolderError: If it cannot be written.
    """
    folder = files("pyro_ssvae.explorer")
    blobs = {name: (folder / "vendor" / file).read_bytes() for name, file in _VENDORED.items()}
    blobs |= {f"array-{name}": _zip(array.tobytes()) for name, array in payload.arrays.items()}
    blobs |= {f"graph-{name}": _zip(as_onnx(network)) for name, network in payload.networks.items()}
    described = {name: [str(array.dtype), list(array.shape)] for name, array in payload.arrays.items()}
    names = payload.networks.items()
    graphs = {name: {"inputs": [*network.inputs], "outputs": [*network.outputs]} for name, network in names}
    meta = {**payload.meta, "arrays": described, "graphs": graphs}
    licence = (folder / "vendor" / "LICENSE").read_text(encoding="utf-8")
    page = _fill(
        folder / "web", {"META": _as_script(meta), "TITLE": _title(meta), "LICENCE": html.escape(licence)}, blobs
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise RunFolderError(f"Cannot write {path}: {error}. Free space, or choose another path.") from error
    return path


def _fill(web: Traversable, parts: dict[str, str], blobs: dict[str, bytes]) -> str:
    """Return the template with styles, scripts and contents in it."""

    def read(name: str) -> str:
        return (web / name).read_text(encoding="utf-8")

    page = read("page.html")
    parts |= {"STYLE": read("style.css"), "SCRIPT": "\n".join(read(f"{name}.js") for name in SCRIPTS)}
    parts["BLOBS"] = "\n".join(
        f'<script type="text/plain" id="blob-{name}">{base64.b64encode(blob).decode()}</script>'
        for name, blob in blobs.items()
    )
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _title(meta: dict[str, Any]) -> str:
    return html.escape(f"{meta['kind'].upper().replace('M1M2', 'M1+M2')} on {meta['data']}")


def _as_script(meta: dict[str, Any]) -> str:
    """Return JSON that cannot end the element around it."""
    return json.dumps(meta, allow_nan=False).replace("<", "\\u003c")


def _zip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
