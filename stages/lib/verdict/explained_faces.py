"""Faces with their heatmaps, for the pages of images and of videos."""

import torch

from stages.lib.detector.preprocessing import input_of
from stages.lib.report.heatmap import STRIDE, WINDOW, occlusion_map
from stages.lib.report.sheets import SheetRow
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.record import Record
from stages.lib.verdict.results import ScoredPart


def explained_faces(
    examiner: Examiner, record: Record, content: bytes, most: int
) -> list[SheetRow]:
    """Return the first faces of an image with their heatmaps and verdicts; most: how many."""
    _, crops = examiner.crops(examiner.decode(content))
    of_faces = zip(crops[:most], record.faces, strict=False)
    return [
        explain_crop(examiner, crop, f"face {number}\n{face.verdict}{probability_in_words(face)}")
        for number, (crop, face) in enumerate(of_faces, 1)
    ]


def explain_crop(examiner: Examiner, crop: torch.Tensor, title: str) -> SheetRow:
    """Return a face with its heatmap; crop: uint8 (3, h, w), as Examiner.crops returns it."""
    inference = examiner.inference
    seen = input_of(crop, examiner.preprocessing)
    heat = occlusion_map(inference.detector, seen, WINDOW, STRIDE, inference.batch_size)
    return SheetRow(title, crop.permute(1, 2, 0).numpy(), seen, heat)


def probability_in_words(part: ScoredPart) -> str:
    """Return the probability of a face or a person, such as ", 12.3%", or nothing."""
    return "" if part.probability is None else f", {part.probability:.1%}"
