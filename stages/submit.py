"""Write the submission to the competition, checked against the list of test images.

params.yaml: submit; data/scores/{test.csv,views.json}, data/packed/test/facts.parquet (the list)
  ->  data/submission/submission.csv
Run: python -m stages.submit

A data set without a test list gives a submission without rows, and one line that says so.
"""

from typing import Annotated

import pandas as pd
from pydantic import Field

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder
from stages.lib.core.params import StageParams, load_params
from stages.lib.core.scores import read_set_scores
from stages.lib.core.tables import write_table
from stages.lib.images.packed_images import read_facts
from stages.lib.running import run_stage

TEST_SCORES = paths.SCORES / "test.csv"


class SubmitParams(StageParams):
    """Section `submit`."""

    missing_score: Annotated[float, Field(ge=0, le=1)] | None


def main() -> None:
    """Write submission.csv: img_name,y_pred in the order of the list."""
    params = load_params("submit", SubmitParams)
    listed = read_facts(paths.PACKED / "test")
    submission = make_submission(listed, read_set_scores("test"), params.missing_score)
    with atomic_folder(paths.SUBMISSION.parent) as folder:
        write_table(submission, folder / paths.SUBMISSION.name)
    if listed.empty:
        print("the data set has no test images: nothing to submit")
    else:
        print(f"{paths.SUBMISSION}: {len(submission)} images")


def make_submission(
    listed: pd.DataFrame, scores: pd.DataFrame, missing_score: float | None
) -> pd.DataFrame:
    """Return img_name and y_pred, one row per listed image, in the order of the list.

    listed: column img_name, and error for a bad image, which gets missing_score. Raises UserError
    for a listed image without a score, a score without a listed image, and a second score of an
    image.
    """
    twice = scores["img_name"][scores["img_name"].duplicated()]
    extra = scores["img_name"][~scores["img_name"].isin(listed["img_name"])]
    for names, problem in ((twice, "has two scores"), (extra, "is not in the test list")):
        if len(names):
            raise UserError(f"{TEST_SCORES}: {names.iloc[0]} {problem} ({len(names)} such images)")
    predicted = listed["img_name"].map(scores.set_index("img_name")["score"])
    bad = listed["error"].notna()
    if missing_score is not None:
        predicted = predicted.mask(bad, missing_score)
    missing = listed[predicted.isna()]
    if len(missing):
        first = missing.iloc[0]
        reason = f": {first['error']}; set submit.missing_score" if bad[missing.index[0]] else ""
        raise UserError(
            f"{TEST_SCORES}: {first['img_name']} is listed and has no score ({len(missing)} such "
            f"images){reason}"
        )
    return pd.DataFrame({"img_name": listed["img_name"], "y_pred": predicted})


if __name__ == "__main__":
    run_stage(main)
