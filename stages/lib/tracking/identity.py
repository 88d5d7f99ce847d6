"""What tells one run from another: its commit, its DVC experiment, uncommitted changes."""

import os
import subprocess

from stages.lib import paths
from stages.lib.core.params import read_yaml

# What the stages write themselves: not a change that a user left uncommitted.
WRITTEN_BY_STAGES = (":(exclude)metrics", ":(exclude)dvc.lock")


def identity_tags() -> dict[str, str]:
    """Return the tags that lead from a run to the Git commit and the DVC experiment."""
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(changed_files())).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "initial_weights": str(read_yaml(paths.PARAMS).get("train", {}).get("weights", "")),
    }
    return {name: value for name, value in tags.items() if value}


def description(tags: dict[str, str]) -> str:
    """Return the Markdown at the top of the page of a run: where it is from, how to restore it."""
    commit = f"commit `{tags.get('git_commit', 'unknown')[:10]}`"
    name = tags.get("dvc_experiment")
    if name:
        return (
            f"DVC experiment **{name}** on {commit}. `dvc exp apply {name}` brings its parameters, "
            f"model and metrics into the workspace; `dvc exp show` lists it by this name."
        )
    diff = " and `uncommitted.diff` below" if tags.get("git_dirty") == "true" else ""
    return (
        f"`dvc repro` on {commit}{diff}. `git checkout` that commit and `dvc checkout` bring back "
        "its parameters, model and metrics once its `dvc.lock` has been committed."
    )


def changed_files() -> list[str]:
    """Return the files that differ from the commit, except those that the stages write."""
    listed = _git("status", "--porcelain", "-z", "--", ".", *WRITTEN_BY_STAGES)
    return [entry[3:] for entry in listed.split("\0") if entry[2:3] == " "]


def uncommitted_diff() -> str:
    """Return the `git diff` of tracked files, except those that the stages write."""
    return _git("diff", "HEAD", "--", ".", *WRITTEN_BY_STAGES)


def _git(*arguments: str) -> str:
    """Return what git prints, or "" outside a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else ""
