"""How many public configs convert whole: `python bench/convert_public.py FOLDER...` prints a JSON line for each folder.

Whole: same targets, same global batch, same rate curve, same optimizer. `close` counts those of them in which 8-bit or 4-bit
AdamW was taken as AdamW, or an 8-bit base as one of 16 bits. Only files that fine-tune (no preference data, no rewards).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from sft_dist.config.convert import convert
from sft_dist.config.load import validate
from sft_dist.core.errors import UserError

OTHER = ("rl", "reward_model", "process_reward_model", "rlhf_type")


def measure(folder: Path) -> dict[str, object]:
    """Convert every file below a folder."""
    found: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in {".yml", ".yaml", ".sh"}):
        text = file.read_text(errors="replace")
        if file.suffix == ".sh" and "swift sft" not in text:
            continue
        if file.suffix != ".sh" and not any(k in text for k in ("base_model:", "model_name_or_path:")):
            continue
        if any(f"\n{k}: " in text or f"--{k} " in text for k in OTHER):
            continue
        if "\nstage: " in text and "\nstage: sft" not in text:
            continue
        try:
            done = convert(file, ranks=8)
        except UserError as error:
            found["refused"] += 1
            missing[str(error)[-60:]] += 1
            continue
        found["files"] += 1
        try:
            validate(done.values)
        except UserError as error:
            found["invalid"] += 1
            missing["invalid: " + str(error).splitlines()[-1].strip()[:90]] += 1
            continue
        if done.changes:
            missing.update({key.split(".")[-1].split(" ")[0] for key in done.changes})
        else:
            found["whole"] += 1
            found["close"] += bool(done.close)
    return {"folder": folder.name, **found, "missing": missing.most_common(40)}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(json.dumps(measure(Path(name))) + "\n")
