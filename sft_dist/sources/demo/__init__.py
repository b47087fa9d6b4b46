"""Word lists and a seed -> Example. The embedded instruction set: generated text tasks, no files. Next: holdout."""

from __future__ import annotations

from sft_dist.sources.demo.reader import DEMO_HELD_OUT, DemoReader

__all__ = ["DEMO_HELD_OUT", "DemoReader"]
