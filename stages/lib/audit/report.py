"""What `prepare` says of the data set: its sets, images that leak between them, and shortcuts."""

from typing import Any

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import CLASS_NAMES


def say_what_was_found(report: dict[str, Any]) -> None:
    """Print the sets, what is held out, leaks and bad images; report: that of metrics/data.json."""
    for name, audit in report["sets"].items():
        counts = ", ".join(f"{audit[kind]} {kind}" for kind in (*CLASS_NAMES, "unlabelled"))
        print(f"{name:12s}{counts}, {audit['num_groups']} groups")
        for source, part in report.get("sources", {}).get(name, {}).items():
            counts = ", ".join(f"{part[kind]} {kind}" for kind in CLASS_NAMES)
            print(f"    {source}: {counts}, {part['num_groups']} groups")
    for family, count in report["held_out"].items():
        print(f"held out    {count} fake of {family}, which nothing is trained or chosen on")
    for source, counts in report.get("held_out_sources", {}).items():
        print(
            f"held out    {counts['real']} real and {counts['fake']} fake of {source}, which "
            "nothing is trained or chosen on"
        )
    if num_near := report.get("near_held_out_sources"):
        print(f"held out    {num_near} images more, of groups with these: they are left out")
    counts = report["duplicates"]["groups_across_sets"]
    for pair, (one, other) in report["duplicates"]["first_across_sets"].items():
        print(
            f"WARNING: {counts[pair]} groups of images that belong together are in both sets of "
            f"{pair}, for example {short(one)} and {short(other)}"
        )
    if report["bad_images"]["count"]:
        print(
            f"WARNING: {report['bad_images']['count']} bad images left out, see {paths.DATA_REPORT}"
        )


def warn_of_shortcuts(audits: dict[str, dict[str, Any]], limit: float, refuse: bool) -> None:
    """Warn of facts that tell the classes of a set apart with a larger AUC than the limit.

    refuse: raise UserError in place of the warning.
    """
    for name, audit in audits.items():
        if name == "calibration":  # a part of val, and too small for an AUC
            continue
        aucs = {fact: auc for fact, auc in audit["shortcuts"].items() if fact != "worst"}
        above = [(fact, auc) for fact, auc in aucs.items() if auc > limit]
        if not above:
            continue
        above.sort(key=lambda pair: -pair[1])
        listed = ", ".join(f"{fact} ({auc:.3f})" for fact, auc in above)
        problem = (
            f"facts that alone tell real from fake in the {name} set, with their AUC: {listed}; "
            "a detector may learn these instead of the manipulation"
        )
        if refuse:
            raise UserError(
                f"{problem}; fix the data, set train.reencode, or prepare.shortcuts: warn"
            )
        print(f"WARNING: {problem} (train.reencode helps against traces of compression)")


def warn_of_sources(told_apart: dict[str, dict[str, Any]]) -> None:
    """Warn where the source alone tells the classes of the training set; see audit_sources."""
    facts = told_apart.get("train", {}).get("facts")
    if facts is None:
        return
    listed = ", ".join(f"{fact} ({auc:.3f})" for fact, auc in facts.items()) or "no audited fact"
    print(
        "WARNING: sources have different shares of fakes, so the source alone tells real from fake "
        f"in the train set (AUC {told_apart['train']['auc']:.3f}), and the source shows in "
        f"{listed}; train.balance: sources draws each source and class equally often"
    )
