"""Size, start and speed of a page of `pyro-ssvae explore`, in headless Chromium.

python benchmarks/explorer.py runs/mnist/explorer.html
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from browser import Browser


def main() -> None:
    page = Path(sys.argv[1])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(page, Path(folder)) as browser:
        print(f"{page.stat().st_size / 1e6:.1f} MB")
        print(f"{time.perf_counter() - start:.1f} s until the page answers, the start of Chromium included")
        print(f"{browser.run('explorer.measureDecodes(200)'):.0f} decodes and pictures a second")
        draw = "(() => { const start = performance.now(); for (let n = 0; n < 20; n++) explorer.drawMap();"
        print(f"{browser.run(draw + ' return (performance.now() - start) / 20; })()'):.1f} ms to draw the map")
        answer = "(async () => { const start = performance.now(); for (let n = 0; n < 5; n++) await explorer.assess("
        answer += "explorer.rowValues(n)); return (performance.now() - start) / 5; })()"
        print(f"{browser.run(answer):.0f} ms to answer for an example")


if __name__ == "__main__":
    main()
