"""The page that explains the verdict of one picture, in one HTML file that needs no network."""

from html import escape

import numpy as np
import torch

from stages.lib.detector.preprocessing import part_to_input
from stages.lib.report.heatmap import STRIDE, WINDOW, occlusion_map
from stages.lib.report.html import html_image, html_page
from stages.lib.report.sheets import HOW_TO_READ, Row, draw_sheet
from stages.lib.verdict.judge import FaceVerdict, Judge
from stages.lib.verdict.record import Record
from stages.lib.verdict.rules import REASONS, UNSURE

MOST_SHOWN = 8  # faces of a picture that are drawn, the largest ones
NOT_TOLD = [
    "It is no proof, in neither direction. It is a reason to look closer, or one less.",
    "A detector finds fakes like those that it was trained on. On fakes of other makers it is "
    "wrong more often than its figures say.",
    "It looks for traces of manipulation in faces. It does not tell who is shown, when or where a "
    "picture was taken, or whether its caption is true.",
    "A file without provenance says nothing by that: most platforms remove it.",
]


def explain_picture(judge: Judge, record: Record, content: bytes) -> str:
    """Return the page of a picture; content: the bytes of its file, which record is of."""
    rows = []
    parts = judge.open(content).parts[:MOST_SHOWN]
    for number, (part, face) in enumerate(zip(parts, record.faces, strict=False), 1):
        seen, heat = heatmap_of(judge, part)
        picture = part.permute(1, 2, 0).numpy()
        title = f"face {number}\n{face.verdict}, {face.probability:.1%}"
        rows.append(Row(title, picture, seen, heat))
    body = [
        f"<h1>{escape(record.file)}</h1>",
        _verdict(record),
        html_image(draw_sheet("", rows), "heatmap and forensic views of each face"),
        HOW_TO_READ,
        "<h2>Stability</h2>",
        "<p>The score, P(fake), after a little compression or resizing:</p>",
        _stability(record.faces),
        "<h2>Provenance</h2>",
        f"<p>{escape(str(record.provenance)) or 'none in this file'}</p>",
        "<h2>What this does not tell you</h2>",
        "<ul>" + "".join(f"<li>{line}" for line in NOT_TOLD) + "</ul>",
        f"<p>SHA-256 of the picture {record.sha256}, of the weights {record.detector.weights}.</p>",
    ]
    return html_page(f"Verdict: {record.file}", "\n".join(body))


def heatmap_of(judge: Judge, part: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Return what the detector sees, uint8 (3, S, S), and its heatmap, float (S, S).

    part: of an opened picture, uint8 (3, h, w).
    """
    seen = part_to_input(part, judge.config.preprocessing)
    on_device = seen.to(judge.hardware.device)
    return seen, occlusion_map(judge.detector, on_device, WINDOW, STRIDE, judge.batch_size)


def verdict_in_words(record: Record) -> str:
    """Return what the verdict of a picture means, in two sentences."""
    if record.verdict == UNSURE:
        reasons = "; ".join(REASONS[reason] for reason in record.reasons)
        meaning = f"The detector should not be trusted here: {reasons}."
    else:
        meaning = f"How often that is wrong: {record.detector.thresholds.in_words(record.verdict)}."
    told = f" Not judged: {record.not_searched}." if record.not_searched else ""
    return f"{record.verdict}: {record.probability:.1%} probability of a fake. {meaning}{told}"


def _verdict(record: Record) -> str:
    limits = record.detector.thresholds
    return (
        f"<p><b>{escape(verdict_in_words(record))}</b></p>\n<p>Fake from a "
        f"probability of {limits.calibrated(limits.fake_from):.1%}, real below "
        f"{limits.calibrated(limits.real_below):.1%}; both were chosen on {limits.num_real} real "
        f"and {limits.num_fake} fake pictures that the detector had not seen in training. The "
        "probability is the score after temperature scaling.</p>"
    )


def _stability(faces: list[FaceVerdict]) -> str:
    names = list(faces[0].views)
    head = "".join(f"<th>{escape(name)}" for name in ("face", "as it is", *names, "same side"))
    rows = [
        "".join(
            f"<td>{cell}"
            for cell in (
                number, f"{face.score:.3f}", *(f"{face.views[name]:.3f}" for name in names),
                f"{face.stability:.0%}",
            )
        )
        for number, face in enumerate(faces, 1)
    ]  # fmt: skip
    return f"<table><tr>{head}" + "".join(f"<tr>{row}" for row in rows) + "</table>"
