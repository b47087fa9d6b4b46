"""Every shipped group and experiment composes and validates without the hub, and fits the hardware that its header names."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from sft_dist.cluster.slurm.site import load_site
from sft_dist.config.load import config_groups, group_choices, load_config
from sft_dist.core.process import resource
from sft_dist.pipelines.cluster.estimate_inputs import shape_of
from sft_dist.pipelines.cluster.recipes import Recipe, calculate, recipes

CHOICES = [
    (group, choice) for group in config_groups() for choice in group_choices(group) if group != "experiment"
]
RECIPES = recipes()


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=str)
def test_every_choice_composes(group: str, choice: str) -> None:
    config = load_config(["experiment=chat_small", f"{group}={choice}"])
    if group == "data":
        assert choice.removesuffix("_file") in {*config.data.sources, "messages", "alpaca"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_every_experiment_fits_the_hardware_that_it_names(recipe: Recipe) -> None:
    config = load_config([f"experiment={recipe.name}"])
    if recipe.needs is None:
        assert recipe.name in ("adapt", "demo", "mixture")
        return
    ranks, _, nodes = recipe.needs
    assert config.launch.nodes == nodes
    assert ranks == config.launch.nproc * nodes  # type: ignore[operator]
    line, fits = calculate(recipe)
    assert fits, line
    # figures of the header follow the estimate; small changes of the estimate do not ask for new headers
    written, now = (int(re.search(r"(\d+) of", text)[1]) for text in (recipe.calculated, line))  # type: ignore[index]
    assert written == pytest.approx(now, rel=0.2), "run `make docs`"


def test_published_sizes_give_the_published_number_of_parameters() -> None:
    file = resources.files("sft_dist.cluster.estimate") / "architectures.json"
    models = json.loads(file.read_text())["models"]
    assert len(models) >= 20
    for path, entry in models.items():
        config = load_config(["experiment=chat_full", f"model={entry['group']}"])
        assert config.model.path == path
        assert shape_of(config, entry["config"]).parameters / 1e9 == pytest.approx(
            entry["billions"], rel=0.02
        ), path


@pytest.mark.parametrize("name", [p.stem for p in (resource("slurm") / "sites").glob("*.yaml")])
def test_example_sites_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))
    assert load_site(name).gpus_per_node
