"""Pages in a real browser: nothing is cut, faint or broken, wide or narrow; and what would be is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import check_looks, look
from run_fixture import write_run

from sft_dist.report.compare import compare
from sft_dist.report.run import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


def test_the_page_of_a_run(run: Path, tmp_path: Path) -> None:
    write_report(run)
    check_looks(run / "report.html", tmp_path)


def test_the_page_of_a_comparison(run: Path, tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "a-run-with-a-long-name-of-its-own", name="a-run-with-a-long-name-of-its-own", seed=1
    )
    page = tmp_path / "comparison.html"
    page.write_text(compare([run, other], "html"), encoding="utf-8")
    check_looks(page, tmp_path)


def test_faults_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><html><head><title>t</title></head><body><p style="color: #999">grey on white</p>'
        '<div style="width: 3000px">wide</div><div class="scroll" style="width: 90px; overflow: auto"><div style="width: 400px">cut</div></div>'
        '<svg width="80" height="20"><text x="-9" y="9">left of it</text></svg><script>nothing.at.all</script></body></html>'
    )
    seen = look(page, tmp_path, 600)
    assert seen["faint"][0].startswith("grey on white")
    assert (seen["outside"], seen["unhinted"]) == (["left of it"], ["cut"])
    assert seen["beyond"] > 2000
    assert len(seen["errors"]) == 1
