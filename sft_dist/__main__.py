"""`python -m sft_dist` is `sft-dist`."""

import sys

from sft_dist.cli import main

sys.exit(main())
