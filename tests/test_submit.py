"""The submission is the test list, each image once, in order, with a probability."""

import pandas as pd
import pytest

from stages.lib.core.errors import UserError
from stages.submit import make_submission

LISTED = pd.DataFrame({"img_name": ["b.jpg", "a.jpg", "c.jpg"], "error": [None, None, None]})
SCORES = pd.DataFrame({"img_name": ["a.jpg", "b.jpg", "c.jpg"], "score": [0.1, 0.2, 1.0]})


def test_rows_are_in_the_lists_order() -> None:
    submission = make_submission(LISTED, SCORES, None)
    assert submission.to_dict("list") == {
        "img_name": ["b.jpg", "a.jpg", "c.jpg"],
        "y_pred": [0.2, 0.1, 1.0],
    }


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (SCORES[:2], r"c.jpg is listed and has no score \(1 such"),
        (pd.concat([SCORES, SCORES[:1]]), "a.jpg has two scores"),
        (pd.concat([SCORES, SCORES[:1].assign(img_name="x.jpg")]), "x.jpg is not in the test list"),
    ],
)
def test_anything_else_is_refused(scores: pd.DataFrame, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_submission(LISTED, scores, None)


def test_an_image_left_out_as_bad_needs_a_score_of_the_users_choice() -> None:
    listed = LISTED.assign(error=[None, None, "empty file"])
    with pytest.raises(UserError, match=r"c.jpg .* empty file; set submit.missing_score"):
        make_submission(listed, SCORES[:2], None)
    assert make_submission(listed, SCORES[:2], 0.5)["y_pred"].tolist() == [0.2, 0.1, 0.5]


def test_the_chosen_score_is_for_bad_images_only() -> None:
    with pytest.raises(UserError, match="c.jpg is listed and has no score"):
        make_submission(LISTED, SCORES[:2], 0.5)
