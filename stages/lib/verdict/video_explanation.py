"""What explains the verdict of a video: its course, its persons, and its most suspicious frames."""

from dataclasses import dataclass
from html import escape
from typing import BinaryIO

import numpy as np
import torch
from matplotlib.figure import Figure

from stages.lib.report.html import as_png, html_image
from stages.lib.report.sheets import SheetRow, draw_sheet
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.explained_faces import explain_crop, probability_in_words
from stages.lib.verdict.record import VideoRecord
from stages.lib.verdict.results import PersonFrame
from stages.lib.verdict.videos import crops_of_frames, strongest_frames

MOST_PERSONS = 12  # that are shown, those with the highest P(fake)
OF_PERSON, OF_VIDEO = 2, 4  # frames that are explained, at most


@dataclass(frozen=True)
class ShownPerson:
    """A person, by the frame that speaks most for fake."""

    number: int  # from 1, in the order of the record
    image: np.ndarray  # uint8 (H, W, 3): the face in that frame


@dataclass(frozen=True)
class ShownFrame:
    """A frame of a person, with its heatmap."""

    person: int  # from 1
    frame: PersonFrame
    row: SheetRow


def show_persons(
    examiner: Examiner, record: VideoRecord, file: BinaryIO
) -> tuple[list[ShownPerson], list[ShownFrame]]:
    """Return the persons of a video and the frames that speak most for fake, the highest first.

    file: of the video, which record is of.
    """
    persons = sorted(enumerate(record.persons, 1), key=lambda one: one[1].logit, reverse=True)
    best = [
        (number, frame)
        for number, person in persons[:MOST_PERSONS]
        for frame in strongest_frames(person, OF_PERSON)
    ]
    crops = crops_of_frames(examiner, record, file, [frame for _, frame in best])
    of_persons: dict[int, torch.Tensor] = {}
    for (number, _), crop in zip(best, crops, strict=True):
        of_persons.setdefault(number, crop)
    shown = [ShownPerson(number, _as_array(crop)) for number, crop in of_persons.items()]
    strongest = sorted(zip(best, crops, strict=True), key=lambda one: one[0][1].logit, reverse=True)
    frames = []
    for (number, frame), crop in strongest[:OF_VIDEO]:
        title = f"person {number}\n{frame.seconds:.1f} s"
        frames.append(ShownFrame(number, frame, explain_crop(examiner, crop, title)))
    return shown, frames


def video_parts(examiner: Examiner, record: VideoRecord, file: BinaryIO) -> list[str]:
    """Return the parts of the page of a video, as HTML."""
    persons, frames = show_persons(examiner, record, file)
    return [
        "" if record.doubt else html_image(draw_course(record), "P(fake) of each person over time"),
        "<h2>Persons</h2>",
        persons_table(record),
        html_image(draw_persons(record, persons), "the face of each person"),
        "<h2>The frames that speak most for fake</h2>",
        html_image(draw_sheet("", [frame.row for frame in frames]), "heatmaps and views of frames"),
    ]


def draw_course(record: VideoRecord) -> bytes:
    """Draw the score of each person over time, with the thresholds, as a PNG."""
    figure = Figure(figsize=(9, 3), dpi=90)
    axes = figure.subplots()
    limits = record.detector.thresholds
    for number, person in enumerate(record.persons, 1):
        seconds = [frame.seconds for frame in person.frames]
        scores = [frame.score for frame in person.frames]
        axes.plot(seconds, scores, marker="o", markersize=4, label=f"person {number}")
    axes.axhline(limits.fake_from, color="tab:red", linestyle="--", linewidth=1, label="fake from")
    axes.axhline(
        limits.real_below, color="tab:green", linestyle="--", linewidth=1, label="real below"
    )
    axes.set(xlabel="seconds", ylabel="score, P(fake)", ylim=(-0.02, 1.02))
    if len(record.persons) <= MOST_PERSONS:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return as_png(figure)


def draw_persons(record: VideoRecord, persons: list[ShownPerson]) -> bytes:
    """Draw the face of each person, as a PNG."""
    figure = Figure(figsize=(1.3 * len(persons) + 0.2, 1.7), dpi=90)
    for cell, person in zip(figure.subplots(1, len(persons), squeeze=False)[0], persons,
                            strict=True):  # fmt: skip
        cell.set_axis_off()
        cell.imshow(person.image)
        verdict = record.persons[person.number - 1].verdict
        cell.set_title(f"person {person.number}\n{verdict}", fontsize=7)
    figure.tight_layout()
    return as_png(figure)


def persons_table(record: VideoRecord) -> str:
    """Return a table of the persons, as HTML."""
    names = ["person", "verdict", "from", "to", "frames"]
    if not record.doubt:  # which withholds figures
        names += ["on the same side", "deviation of logits"]
    table = "<table><tr>" + "".join(f"<th>{name}" for name in names)
    for number, person in enumerate(record.persons, 1):
        cells = [
            str(number),
            person.verdict + probability_in_words(person),
            f"{person.frames[0].seconds:.1f} s",
            f"{person.frames[-1].seconds:.1f} s",
            str(len(person.frames)),
            f"{person.same_side:.0%}",
            f"{person.deviation:.2f}",
        ]
        table += "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells[: len(names)])
    return table + "</table>"


def _as_array(crop: torch.Tensor) -> np.ndarray:
    return crop.permute(1, 2, 0).numpy()
