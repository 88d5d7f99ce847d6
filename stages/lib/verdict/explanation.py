"""The page that explains the verdict of one file, in one HTML file that needs no network."""

from html import escape
from typing import BinaryIO

from stages.lib.evaluation.verdict_rules import DOUBTS, REASONS, UNSURE, Doubt, learnt_from
from stages.lib.report.html import html_image, html_page
from stages.lib.report.sheets import HOW_TO_READ, draw_sheet
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.explained_faces import explained_faces
from stages.lib.verdict.printing import NO_PROOF, judged_in_words
from stages.lib.verdict.record import AnyRecord, VideoRecord
from stages.lib.verdict.results import FaceVerdict
from stages.lib.verdict.video_explanation import video_parts

MOST_SHOWN = 8  # faces on the page, the largest ones of the image
NOT_TOLD = [
    "A detector recognises fakes like those that it was trained on. On fakes of other generators "
    "it is wrong more often than its figures say.",
    "It looks for traces of manipulation in faces. It does not tell who is shown, when or where an "
    "image was taken, or whether its caption is true.",
    "Missing provenance says nothing about an image: most platforms remove it.",
]


def explain(examiner: Examiner, record: AnyRecord, file: BinaryIO) -> str:
    """Return the page of an image or a video; file: open, which record is of."""
    learnt = learnt_from(examiner.rules.trained_on)
    heading = f"<h1>{escape(record.file)}</h1>\n<p>By a detector that has {escape(learnt)}.</p>"
    body = [heading, _verdict(record)]
    if isinstance(record, VideoRecord):
        body += [*video_parts(examiner, record, file), HOW_TO_READ]
    else:
        rows = explained_faces(examiner, record, file.read(), MOST_SHOWN)
        image = html_image(draw_sheet("", rows), "heatmap and forensic views of each face")
        body += [image, HOW_TO_READ, "" if record.doubt else _stability(record.faces)]
    body += [
        "<h2>Provenance</h2>",
        f"<p>{escape(str(record.provenance)) or 'none in this file'}</p>",
        "<h2>What this does not tell you</h2>",
        "<ul>" + "".join(f"<li>{line}" for line in not_told(record.doubt)) + "</ul>",
        f"<p>SHA-256 of the file {record.sha256}, of the weights {record.detector.weights}.</p>",
    ]
    return html_page(f"Verdict: {record.file}", "\n".join(body))


def not_told(doubt: Doubt | None) -> list[str]:
    """Return what a verdict does not tell; that of a doubted detector is no reason to look."""
    return NOT_TOLD if doubt else [NO_PROOF, *NOT_TOLD]


def verdict_in_words(record: AnyRecord) -> str:
    """Return what the verdict of a file means, in sentences that come after it."""
    told = f" Not examined: {record.not_searched}." if record.not_searched else ""
    if isinstance(record, VideoRecord):
        told += f" Judged: {judged_in_words(record)}."
        if record.thresholds_of == "images":
            told += " The thresholds are those of images, because there were too few videos."
    if record.doubt:
        return f"{DOUBTS[record.doubt]}{told}"
    if record.verdict == UNSURE:
        reasons = "; ".join(REASONS[reason] for reason in record.reasons)
        meaning = f"The detector should not be trusted here: {reasons}."
    else:
        looked_for = f"No sign of {record.no_sign_of}. " if record.no_sign_of else ""
        how_often = record.detector.thresholds.in_words(record.verdict)
        meaning = f"{looked_for}How often that is wrong: {how_often}."
    return f"{record.probability:.1%} probability of a fake. {meaning}{told}"


def _verdict(record: AnyRecord) -> str:
    words = escape(verdict_in_words(record))
    if record.doubt:
        return f"<p><b>{words}</b> Its verdict is: {record.verdict}.</p>"
    limits = record.detector.thresholds
    return (
        f"<p><b>{record.verdict}</b>: {words}</p>\n"
        f"<p>Fake from a probability of {limits.calibrated(limits.fake_from):.1%}, real below "
        f"{limits.calibrated(limits.real_below):.1%}; both were chosen on {limits.num_real} real "
        f"and {limits.num_fake} fake {limits.counted} that the detector had not seen in training. "
        "The probability is the score after temperature scaling.</p>"
    )


def _stability(faces: list[FaceVerdict]) -> str:
    names = list(faces[0].views)
    head = "".join(f"<th>{escape(name)}" for name in ("face", "as it is", *names, "same side"))
    table = f"<table><tr>{head}"
    for number, face in enumerate(faces, 1):
        scores = [face.score, *(face.views[name] for name in names)]
        cells = [str(number), *(f"{score:.3f}" for score in scores), f"{face.stability:.0%}"]
        table += "<tr>" + "".join(f"<td>{cell}" for cell in cells)
    table += "</table>"
    words = "<p>The score, P(fake), after a little compression or resizing:</p>"
    return f"<h2>Stability</h2>\n{words}\n{table}"
