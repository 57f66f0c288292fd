"""``python -m pyro_ssvae``: the console script."""

import sys

from pyro_ssvae.cli.main import main

sys.exit(main())
