"""Golden scores: no library and no change of the code moves a score unnoticed."""

import pytest

from tests import golden


def test_decoding_faces_and_scores_are_those_that_were_written_down() -> None:
    """Another CPU rounds otherwise, by much less than these tolerances."""
    expected, computed = golden.read(), golden.compute()
    assert computed["facts"] == expected["facts"]
    assert list(computed["scores"]) == list(expected["scores"])
    for way, images in expected["scores"].items():
        for name, faces in images.items():
            others = computed["scores"][way][name]
            assert len(others) == len(faces), (way, name)
            for face, other in zip(faces, others, strict=True):
                assert other["logit"] == pytest.approx(face["logit"], abs=2e-3), (way, name)
                assert other["views"] == pytest.approx(face["views"], abs=1e-3), (way, name)
                assert (other["box"] is None) == (face["box"] is None)
                assert (other["box"] or []) == pytest.approx(face["box"] or [], abs=1)
