"""Write the competition's submission, checked against the list of test images.

params.yaml: submit; data/scores/test.csv, data/packed/test/facts.parquet (the list)
  ->  data/submission/submission.csv, logged to the model's MLflow run
Run: python -m stages.submit
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from stages.lib.errors import UserError, run_stage
from stages.lib.files import fresh_folder
from stages.lib.labels import write_table
from stages.lib.packed import read_facts
from stages.lib.params import StageParams, load_params
from stages.lib.tracking import tracker_of

SCORES = Path("data/scores/test.csv")
TEST_SET = Path("data/packed/test")
MODEL = Path("data/model")
SUBMISSION = Path("data/submission")


class SubmitParams(StageParams):
    """Section `submit`."""

    missing_score: Annotated[float, Field(ge=0, le=1)] | None


def main() -> None:
    """Write submission.csv: img_name,y_pred in the list's order."""
    params = load_params("submit", SubmitParams)
    listed = read_facts(TEST_SET)
    if listed.empty:
        raise UserError(
            "data.root has no test list (phase2/testset1_seen_nolabel.txt), so there is nothing to "
            "submit; `dvc repro evaluate` runs everything else"
        )
    scores = pd.read_csv(SCORES, dtype={"img_name": "str"})
    submission = make_submission(listed, scores, params.missing_score)
    with fresh_folder(SUBMISSION) as folder:
        write_table(submission, folder / "submission.csv")
    print(f"{SUBMISSION / 'submission.csv'}: {len(submission)} images")
    tracker_of(MODEL).log_file(SUBMISSION / "submission.csv")


def make_submission(
    listed: pd.DataFrame, scores: pd.DataFrame, missing_score: float | None
) -> pd.DataFrame:
    """Return the columns img_name and y_pred, one row per listed image, in the list's order.

    listed: column img_name, and error for a bad image, which gets missing_score. Raises UserError
    for a listed image without a score, a score without a listed image, a second score for one
    image, and a score that is no number in [0, 1].
    """
    twice = scores["img_name"][scores["img_name"].duplicated()]
    extra = scores["img_name"][~scores["img_name"].isin(listed["img_name"])]
    wrong = scores["img_name"][~scores["score"].between(0, 1)]
    for names, what in ((twice, "has two scores"), (extra, "is not in the test list"),
                        (wrong, "has a score that is no number in [0, 1]")):  # fmt: skip
        if len(names):
            raise UserError(f"{SCORES}: {names.iloc[0]} {what} ({len(names)} such images)")
    predicted = listed["img_name"].map(scores.set_index("img_name")["score"])
    bad = listed["error"].notna()
    if missing_score is not None:
        predicted = predicted.mask(bad, missing_score)
    missing = listed[predicted.isna()]
    if len(missing):
        first = missing.iloc[0]
        reason = f": {first['error']}; set submit.missing_score" if bad[missing.index[0]] else ""
        raise UserError(
            f"{SCORES}: {first['img_name']} is listed and has no score ({len(missing)} such "
            f"images){reason}"
        )
    return pd.DataFrame({"img_name": listed["img_name"], "y_pred": predicted})


if __name__ == "__main__":
    run_stage(main)
