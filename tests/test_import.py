"""What importing the package costs."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_does_not_import_plots_or_scikit_learn() -> None:
    code = """
import sys
import torch, pyro
before = set(sys.modules)
import pyro_ssvae
new = set(sys.modules) - before
print(*sorted(new & {"matplotlib", "sklearn", "pyro_ssvae.plots"}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
