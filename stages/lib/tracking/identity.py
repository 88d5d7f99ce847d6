"""Where a run comes from: its commit, its DVC experiment, uncommitted changes."""

import os
import subprocess
from pathlib import Path

from stages.lib import paths
from stages.lib.core.params import read_yaml

LARGEST_NEW_FILE = 1_000_000  # bytes
# Files that the stages write are not changes of the user.
WRITTEN_BY_STAGES = (":(exclude)metrics", ":(exclude)dvc.lock")


def identity_tags() -> dict[str, str]:
    """Return the tags that lead from a run to the Git commit and the DVC experiment."""
    changed = changed_files()
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": "unknown" if changed is None else str(bool(changed)).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "initial_weights": str(read_yaml(paths.PARAMS).get("train", {}).get("weights", "")),
    }
    return {name: value for name, value in tags.items() if value}


def description(tags: dict[str, str]) -> str:
    """Return Markdown for the page of a run: where it comes from, and how to restore it."""
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


def changed_files() -> list[str] | None:
    """Return the files that differ from the commit, except those that the stages write.

    None: Git is not installed, or there is no repository that it can read.
    """
    listed = _git("status", "--porcelain", "-z", "-uall", "--", ".", *WRITTEN_BY_STAGES)
    if listed is None:
        return None
    return [entry[3:] for entry in listed.split("\0") if entry[2:3] == " "]


def uncommitted_diff() -> str:
    """Return the `git diff` of all that is not in the commit, except what the stages write.

    It contains files that Git does not track; of those above LARGEST_NEW_FILE only the names.
    """
    parts = [_git("diff", "HEAD", "--", ".", *WRITTEN_BY_STAGES)]
    new = _git("ls-files", "-o", "--exclude-standard", "-z", "--", ".", *WRITTEN_BY_STAGES)
    for name in filter(None, (new or "").split("\0")):
        try:
            is_too_large = Path(name).stat().st_size > LARGEST_NEW_FILE
        except (OSError, ValueError):  # a name that is not UTF-8
            is_too_large = True
        if is_too_large:
            parts.append(f"new file, not kept: {name}")
        else:
            parts.append(_git("diff", "--no-index", "--", os.devnull, name))
    return "\n".join(filter(None, parts))


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None where it is not installed or fails.

    Bytes that are not UTF-8, in a file or in its name, become question marks.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    is_difference = "--no-index" in arguments and done.returncode == 1
    if done.returncode and not is_difference:
        return None
    return done.stdout.decode(errors="replace").strip("\n")
