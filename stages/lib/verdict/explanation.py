"""The page that explains the verdict of one image, in one HTML file that needs no network."""

from html import escape

from stages.lib.detector.preprocessing import input_of
from stages.lib.evaluation.verdict_rules import DOUBTS, REASONS, UNSURE, Doubt
from stages.lib.report.heatmap import STRIDE, WINDOW, occlusion_map
from stages.lib.report.html import html_image, html_page
from stages.lib.report.sheets import HOW_TO_READ, SheetRow, draw_sheet
from stages.lib.verdict.examiner import Examiner, FaceVerdict
from stages.lib.verdict.record import Record

MOST_SHOWN = 8  # faces on the page, the largest ones of the image
NO_PROOF = "A verdict is a reason to look closer. It does not prove that an image is real or fake."
NOT_TOLD = [
    "A detector recognises fakes like those that it was trained on. On fakes of other generators "
    "it is wrong more often than its figures say.",
    "It looks for traces of manipulation in faces. It does not tell who is shown, when or where an "
    "image was taken, or whether its caption is true.",
    "Missing provenance says nothing about an image: most platforms remove it.",
]


def explain_image(examiner: Examiner, record: Record, content: bytes) -> str:
    """Return the page of an image; content: the bytes of its file, which record is of."""
    rows = explained_faces(examiner, record, content, MOST_SHOWN)
    body = [
        f"<h1>{escape(record.file)}</h1>",
        _verdict(record),
        html_image(draw_sheet("", rows), "heatmap and forensic views of each face"),
        HOW_TO_READ,
        "" if record.doubt else _stability(record.faces),
        "<h2>Provenance</h2>",
        f"<p>{escape(str(record.provenance)) or 'none in this file'}</p>",
        "<h2>What this does not tell you</h2>",
        "<ul>" + "".join(f"<li>{line}" for line in not_told(record.doubt)) + "</ul>",
        f"<p>SHA-256 of the image {record.sha256}, of the weights {record.detector.weights}.</p>",
    ]
    return html_page(f"Verdict: {record.file}", "\n".join(body))


def explained_faces(
    examiner: Examiner, record: Record, content: bytes, most: int
) -> list[SheetRow]:
    """Return the first faces of an image with their heatmaps and verdicts; most: how many."""
    rows, inference = [], examiner.inference
    crops = examiner.crops(content)[:most]
    for number, (crop, face) in enumerate(zip(crops, record.faces, strict=False), 1):
        seen = input_of(crop, examiner.preprocessing)
        heat = occlusion_map(inference.detector, seen, WINDOW, STRIDE, inference.batch_size)
        title = f"face {number}\n{face.verdict}"
        if face.probability is not None:
            title += f", {face.probability:.1%}"
        rows.append(SheetRow(title, crop.permute(1, 2, 0).numpy(), seen, heat))
    return rows


def not_told(doubt: Doubt | None) -> list[str]:
    """Return what a verdict does not tell; that of a doubted detector is no reason to look."""
    return NOT_TOLD if doubt else [NO_PROOF, *NOT_TOLD]


def verdict_in_words(record: Record) -> str:
    """Return what the verdict of an image means, in sentences."""
    told = f" Not examined: {record.not_searched}." if record.not_searched else ""
    if record.doubt:
        return f"{DOUBTS[record.doubt]} Its verdict is: {record.verdict}.{told}"
    if record.verdict == UNSURE:
        reasons = "; ".join(REASONS[reason] for reason in record.reasons)
        meaning = f"The detector should not be trusted here: {reasons}."
    else:
        looked_for = f"No sign of {record.no_sign_of}. " if record.no_sign_of else ""
        how_often = record.detector.thresholds.in_words(record.verdict)
        meaning = f"{looked_for}How often that is wrong: {how_often}."
    return f"{record.verdict}: {record.probability:.1%} probability of a fake. {meaning}{told}"


def _verdict(record: Record) -> str:
    words = f"<p><b>{escape(verdict_in_words(record))}</b></p>\n"
    if record.doubt:
        return words
    limits = record.detector.thresholds
    return (
        f"{words}<p>Fake from a probability of {limits.calibrated(limits.fake_from):.1%}, real "
        f"below {limits.calibrated(limits.real_below):.1%}; both were chosen on {limits.num_real} "
        f"real and {limits.num_fake} fake images that the detector had not seen in training. "
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
