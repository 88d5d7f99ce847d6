"""Write the model card: what the detector is, what it was measured to do, and its limits.

params.yaml: train; metrics/, data/model/config.json
  ->  metrics/model_card.md, data/card/model_card.html (the same with figures)
Run: python -m stages.card

Every sentence follows from a file of the pipeline; stages/lib/report/model_card.md.j2 has the text.
The headings follow Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

import re
from typing import Any

from markdown_it import MarkdownIt

from stages.lib import paths
from stages.lib.core.files import atomic_folder, read_json, write_text
from stages.lib.core.params import read_yaml
from stages.lib.core.scores import read_evaluation
from stages.lib.core.tables import read_tables
from stages.lib.report import html
from stages.lib.report.card import Tables, figures_of, fill, limits_of
from stages.lib.report.figures import draw_all
from stages.lib.report.left_out import NOT_MEASURED, Unseen, read_left_out, unseen_sources
from stages.lib.running import run_stage

FIGURES = ("robustness", "roc", "calibration", "scores")
MOST_PARAMETERS = 200e6  # a rule of the competition
OTHER_DATA = r"in12k|in21k|in22k|inw21k|_ft_|laion|clip|jft|ig1b|yfcc|openai|webli|lvd|swag|seer"


def main() -> None:
    """Write the card as Markdown and as HTML."""
    config = read_json(paths.CONFIG, "preprocessing", "num_parameters", "initial_weights", "expert")
    data = read_json(paths.DATA_REPORT, "generated_sample", "duplicates")
    report, tables = read_evaluation(), read_tables(paths.TABLES)
    train = read_yaml(paths.PARAMS)["train"]
    unseen = unseen_sources(report, tables["intervals"], train, read_left_out())
    text = render(config, report, data, tables, unseen)
    write_text(paths.CARD, text)
    with atomic_folder(paths.CARD_PAGE.parent) as folder:
        write_text(folder / paths.CARD_PAGE.name, as_html(text))
    print(f"{paths.CARD}, {paths.CARD_PAGE}")
    print(f"on a generator that it has never seen: {unseen.answer}")


def render(
    config: dict[str, Any],
    report: dict[str, Any],
    data: dict[str, Any],
    tables: Tables,
    unseen: Unseen = NOT_MEASURED,
) -> str:
    """Return the card in Markdown; tables: those of metrics/tables by name."""
    shared = data["duplicates"]["groups_across_sets"]
    limits = limits_of(report, data, tables, is_own=True)
    if config["preprocessing"]["reencode"] is None:
        limits.append("Traces of earlier compression reach the detector (train.reencode is off).")
    return fill(
        "model_card.md.j2",
        **figures_of(report, tables),
        config=config,
        data=data,
        unseen=unseen,
        shared_groups=[f"{pair} {count}" for pair, count in shared.items() if count],
        verdicts=tables["verdicts"][tables["verdicts"]["slice"] == "all"].to_dict("records"),
        robustness=tables["robustness"].to_dict("records"),
        false_alarms=tables["false_alarms"].to_dict("records"),
        limits=limits,
        rules=rules_of(config),
    )


def rules_of(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return each rule of the competition, whether it is kept, and how that is known."""
    is_small = config["num_parameters"] <= MOST_PARAMETERS
    return [
        ("at most 200 M parameters", "yes" if is_small else "no", f"{config['num_parameters']:,}"),
        ("pretrained on ImageNet-1K only", *pretraining(config["initial_weights"])),
        ("one model", *singleness(config["expert"])),
    ]


def singleness(expert: dict[str, Any] | None) -> tuple[str, str]:
    """Return whether the detector is a single network, and how that is known."""
    if expert:
        return "no", f"an ensemble of two networks, the expert at {expert['weight']}"
    return "yes", "a submission has the scores of this one"


def pretraining(initial_weights: str) -> tuple[str, str]:
    """Return whether the first weights came only from ImageNet-1K, and how that is known."""
    if initial_weights == "random":
        return "yes", "no pretraining"
    kind, _, tag = initial_weights.partition(":")
    if kind != "hub":
        return "not known", f"weights from a file, {initial_weights}"
    if re.search(OTHER_DATA, f"_{tag}"):
        return "no", f"timm's weights '{tag}' have seen other images"
    if re.search(r"in1k(_\d+)?$", tag):
        return "yes", f"timm's weights '{tag}'"
    return "not known", f"timm's weights '{tag}'"


def as_html(text: str) -> str:
    """Return the card as one HTML page, with figures."""
    figures = draw_all(read_tables(paths.PLOTS))
    images = [
        html.html_image(html.as_png(figures[name]), name) for name in FIGURES if name in figures
    ]
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return html.html_page("Model card", body + "<h2>Curves (val)</h2>\n" + "\n".join(images))


if __name__ == "__main__":
    run_stage(main)
