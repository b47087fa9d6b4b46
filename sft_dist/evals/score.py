"""Predictions and baselines -> eval/generations.jsonl and eval/scores.json. The metrics of Super-NaturalInstructions.

Source: compute_metrics.py of Tk-Instruct (Wang et al., 2022, Super-NaturalInstructions): exact match after
lowering, removing ASCII punctuation and collapsing spaces (articles stay), ROUGE-L F1 with stemming on the text
as it is; both take the best of all references. All scores are shares, 0 to 1.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sft_dist.core.records import Example
from sft_dist.core.store import write_json, write_text
from sft_dist.evals.baselines import Baselines
from sft_dist.evals.generate import Generation
from sft_dist.evals.tasks import SetName, prompt_text, user_text
