"""Write the sizes of the packages into docs/map.md: `python bench/sizes.py`. Lines of modules, and of templates and pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _lines(files: list[Path]) -> int:
    return sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)


def table() -> str:
    """Return the table as Markdown: a row for each package, and the sum."""
    package = ROOT / "sft_dist"
    rows = [("`cli.py` and others beside the packages", sorted(package.glob("*.py")), [])]
    for folder in sorted(p.parent for p in package.glob("*/__init__.py")):
        files = sorted(
            f for f in folder.rglob("*") if f.is_file() and f.suffix in {".jinja", ".css", ".js", ".html"}
        )
        rows.append((f"`{folder.name}/`", sorted(folder.rglob("*.py")), files))
    text = "| package | modules | lines | templates and pages: files | lines |\n|---|---:|---:|---:|---:|\n"
    for name, modules, other in rows:
        text += f"| {name} | {len(modules)} | {_lines(modules):,} | {len(other)} | {_lines(other):,} |\n"
    modules, other = [f for r in rows for f in r[1]], [f for r in rows for f in r[2]]
    return text + f"| all | {len(modules)} | {_lines(modules):,} | {len(other)} | {_lines(other):,} |\n"


if __name__ == "__main__":
    page = ROOT / "docs/map.md"
    marks = r"(<!-- sizes -->\n).*?(<!-- /sizes -->)"
    page.write_text(re.sub(marks, lambda m: m[1] + table() + m[2], page.read_text(), flags=re.DOTALL))
