"""write-run and prepare as the real commands: overrides in, config.json or store files out, exit code 2 on a mistake."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=("write-run", "prepare", "evaluate"))
parser.add_argument("overrides", nargs="*")
parser.add_argument("--run-dir", type=Path)
parser.add_argument("--slice")
args = parser.parse_intermixed_args()

settings = dict(o.split("=", 1) for o in args.overrides if "=" in o)
if args.command == "write-run":
    if "mistake" in settings:
        sys.stderr.write("mistake: unknown key\n")
        sys.exit(2)
    args.run_dir.mkdir(parents=True, exist_ok=True)
    config = {"overrides": args.overrides, "launch": {"nproc": int(settings.get("nproc", 2))}, **settings}
    (args.run_dir / "config.json").write_text(json.dumps(config, indent=1))
elif args.command == "prepare":
    store = Path(settings["store"])
    store.mkdir(parents=True, exist_ok=True)
    name = f"slice-{args.slice.replace('/', '-of-')}" if args.slice else "manifest"
    (store / name).write_text(" ".join(args.overrides))
else:
    run = Path(args.overrides[0])
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    (run / "evaluated").touch()
