"""Config and cluster -> jobs in the queue: check, estimate, render, submit, say how to follow."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from sft_dist.cluster.slurm.job_chain import FOLDER, chain, files, follow, refuse_if_queued, send, shown
from sft_dist.cluster.slurm.site import load_site
from sft_dist.config import RunConfig
from sft_dist.config.cluster import SiteProfile
from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded
from sft_dist.pipelines.cluster.estimate import estimate, show
from sft_dist.pipelines.data.check import check
from sft_dist.pipelines.train.planning import check_ranks
from sft_dist.pipelines.train.run_folder import absolute, make_way, run_folder


def submit(config: RunConfig, console: Console, *, command: str, limit: int, dry_run: bool) -> None:
    """Submit a run to the cluster that the config names.

    Args:
        config: The run's config.
        console: Where the outcome is shown.
        command: The command that prepares this config, for the message when its stores are missing.
        limit: Examples of each source that the check renders where there is no store yet.
        dry_run: Show the files and submit nothing.

    Raises:
        UserError: For anything wrong with the profile, the config or the data, or when Slurm refuses.
    """
    if config.cluster is None:
        raise UserError(
            "no cluster is named, so it is unknown what to ask Slurm for; add cluster=NAME of a site profile (docs/cluster.md)"
        )
    site = load_site(config.cluster)
    config = absolute(at_site(config, site))
    folder = run_folder(config)
    nproc = config.launch.nproc
    check_ranks(config, ranks=None if nproc == "auto" else nproc * config.launch.nodes)
    _refuse_missing_stores(config, command)
    summary = check(config, limit=limit)
    console.print(summary.line(), soft_wrap=True)
    try:
        show(estimate(config, summary), console)
    except UserError as error:  # what is unknown here may be known on the nodes
        console.print(f"no estimate: {error}", soft_wrap=True)
    submit = config.submit
    jobs = chain(folder.path, nodes=config.launch.nodes, **submit.model_dump())
    if dry_run:
        texts = files(site, jobs, config.model_dump(mode="json"))
        console.print(shown(folder.path, texts), soft_wrap=True, markup=False)
        return
    refuse_if_queued(folder.path)
    config = make_way(config, folder)
    numbers = send(folder.path, files(site, jobs, config.model_dump(mode="json")), jobs)
    quoted = shlex.quote(str(folder.path))
    lines = {
        "run folder": str(folder.path),
        "output": f"{folder.path / FOLDER}/*.out",
        "follow": f"sft-dist watch {quoted}",
        "save and requeue": f"scancel --signal=USR1 --batch {numbers['train']}",
        "save and end": f"touch {quoted}/control/stop",
        "end at once": f"scancel {' '.join(numbers.values())}",
    }
    console.print(follow(numbers, **lines), soft_wrap=True, markup=False)


def at_site(config: RunConfig, site: SiteProfile) -> RunConfig:
    """Return the config with what the site decides where the user left it open.

    Raises:
        UserError: When the archive of its environment is not there.
    """
    if site.stage_env and not Path(site.stage_env).is_file():
        raise UserError(
            f"stage_env={site.stage_env} of the site profile is no file, so jobs would have no environment; make it "
            "(launch/stage_env.sh says how), or take the key out"
        )
    own = "run_root" in config.model_fields_set or site.run_root is None
    root = config.run_root if own else str(site.run_root)
    changed: dict[str, object] = {"run_root": str(expanded(root).resolve())}
    if site.wandb_offline and config.wandb.mode == "auto":
        changed["wandb"] = config.wandb.model_copy(update={"mode": "offline"})
    if site.gpus_per_node and config.launch.nproc == "auto":
        changed["launch"] = config.launch.model_copy(update={"nproc": site.gpus_per_node})
    return config.model_copy(update=changed)


def _refuse_missing_stores(config: RunConfig, command: str) -> None:
    stores = Path(config.data.dir) / "stores"
    missing = [n for n in config.data.sources if not (stores / n / "manifest.json").is_file()]
    if missing and not config.submit.prepare_tasks:
        raise UserError(
            f"the token store of {', '.join(missing)} is not built in {stores}, so the job would end at its first minute; "
            f"add submit.prepare_tasks=8 to build on CPU nodes first, or run: {command}"
        )
