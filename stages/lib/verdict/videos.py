"""From a video to its verdict: the persons in some of its frames, and what their scores mean."""

import hashlib
import sys
from dataclasses import dataclass, field
from itertools import islice
from threading import Event
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

from stages.lib.data.videos import Frame, Video, open_video
from stages.lib.detector.inference import score_table
from stages.lib.evaluation.verdict_rules import Rules
from stages.lib.images.decoding import DecodedImage, UnusableImage
from stages.lib.images.faces import Face
from stages.lib.verdict.examiner import Examiner, PreparedImage
from stages.lib.verdict.persons import follow
from stages.lib.verdict.results import PersonFrame, PersonVerdict, VideoVerdict

FRAMES = 32  # of a video that are judged, where nobody says how many
FRAMES_AT_A_TIME = 4  # that are in memory


@dataclass
class ScoredFrames:
    """What is kept of the judged frames: no pixels."""

    times: list[tuple[int, float]] = field(default_factory=list)  # number and seconds of each frame
    faces: list[list[Face | None]] = field(default_factory=list)  # of each frame
    scores: list[pd.DataFrame] = field(default_factory=list)  # logit, low, high, distance: a face
    not_judged: int = 0
    missed_below: int = 0

    def add(self, frame: Frame, image: PreparedImage, scores: pd.DataFrame) -> None:
        """Keep the scores of a frame, a row for each of its faces."""
        self.times.append((frame.number, frame.seconds))
        self.faces.append(image.faces)
        self.scores.append(scores)
        self.not_judged = max(self.not_judged, image.not_judged)
        self.missed_below = max(self.missed_below, image.missed_below)

    def persons(self, is_cut: bool) -> list[list[tuple[int, int]]]:
        """Return the persons, each as its faces: the number of the frame, and that of the face.

        Where whole frames are examined (is_cut false), or no frame has a face, the frames are one
        person. Else frames without a face count for nobody.
        """
        faces = [[face for face in of_frame if face] for of_frame in self.faces]
        if not is_cut or not any(faces):
            return [[(frame, 0) for frame in range(len(self.faces))]]
        return [[(seen.frame, seen.place) for seen in person] for person in follow(faces)]


def examine_video(
    examiner: Examiner, file: BinaryIO, wanted: int, is_over: Event | None = None
) -> VideoVerdict:
    """Return the verdict of a video from `wanted` of its frames, evenly spread.

    file: open, with a descriptor. Of a frame only its time is kept, so memory hardly grows with the
    length. is_over: set where nobody waits for the verdict any more. Raises UnusableImage where no
    frame can be examined.
    """
    sha256 = sha256_of_open(file)
    scored = ScoredFrames()
    with open_video(file, examiner.max_pixels) as video:
        frames = video.frames(wanted)
        size = (0, 0)
        while batch := list(islice(frames, FRAMES_AT_A_TIME)):
            if is_over and is_over.is_set():
                raise UnusableImage("its examination was ended")
            decoded = [as_image(video, frame) for frame in batch]
            images = list(examiner.pool.map(examiner.prepare, decoded))
            for frame, image, scores in zip(batch, images, examiner.score(images), strict=True):
                scored.add(frame, image, score_table(*(part.numpy() for part in scores)))
                size = image.size
        codec, num_frames = video.codec, video.num_frames
        seconds = video.seconds
    rules = examiner.rules.for_videos()
    of_persons = scored.persons(examiner.face_share is not None)
    persons = [person_verdict(scored, faces, rules, size) for faces in of_persons]
    return VideoVerdict(
        sha256=sha256,
        format=codec,
        width=size[0],
        height=size[1],
        not_judged=scored.not_judged,
        missed_below=scored.missed_below,
        seconds=seconds,
        num_frames=num_frames,
        frames_wanted=wanted,
        frames_judged=len({frame for faces in of_persons for frame, _ in faces}),
        thresholds_of=rules.thresholds.counted,
        persons=persons,
        **examiner.decision(persons),
    )


def sha256_of_open(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, of which a block at a time is in memory."""
    file.seek(0)
    content: Any = file  # the type of hashlib leaves out BinaryIO
    return hashlib.file_digest(content, "sha256").hexdigest()


def as_image(video: Video, frame: Frame) -> DecodedImage:
    """Return a frame as an image that was decoded without any loss."""
    pixels = np.ascontiguousarray(frame.pixels)
    height, width = pixels.shape[:2]
    return DecodedImage(pixels, video.codec, "RGB", (width, height), None)


def person_verdict(
    scored: ScoredFrames, faces: list[tuple[int, int]], rules: Rules, size: tuple[int, int]
) -> PersonVerdict:
    """Return the verdict of a person; faces: as ScoredFrames.persons returns them."""
    table = pd.concat([scored.scores[frame].iloc[[place]] for frame, place in faces])
    found = [scored.faces[frame][place] for frame, place in faces]
    means = table[["logit", "low", "high", "distance"]].mean()
    face_size = float(np.median([face.size if face else 0.0 for face in found]))
    row = pd.DataFrame([means]).assign(
        face=face_size, width=size[0], height=size[1], jpeg_quality=np.nan
    )
    verdicts, reasons = rules.apply(row)
    logits, limits = table["logit"].to_numpy(), rules.thresholds
    mean = float(means["logit"])
    middle = logit(limits.middle)
    return PersonVerdict(
        verdict=verdicts.iloc[0],
        probability=None if rules.doubt else float(expit(mean / limits.temperature)),
        score=float(expit(mean)),
        logit=mean,
        reasons=[str(name) for name, given in reasons.iloc[0].items() if given],
        face_size=face_size,
        distance=None if np.isnan(means["distance"]) else float(means["distance"]),
        lowest=float(expit(means["low"])),
        highest=float(expit(means["high"])),
        same_side=float(((logits >= middle) == (mean >= middle)).mean()),
        deviation=float(logits.std()),
        frames=[
            PersonFrame(
                number=scored.times[frame][0],
                seconds=scored.times[frame][1],
                score=float(expit(value)),
                logit=float(value),
                box=face.box if face else None,
            )
            for (frame, _), face, value in zip(faces, found, logits, strict=True)
        ],
    )


def strongest_frames(person: PersonVerdict, most: int) -> list[PersonFrame]:
    """Return the frames of a person that speak most for fake, the strongest first."""
    return sorted(person.frames, key=lambda frame: frame.logit, reverse=True)[:most]


def crops_of_frames(
    examiner: Examiner, verdict: VideoVerdict, file: BinaryIO, chosen: list[PersonFrame]
) -> list[torch.Tensor]:
    """Return what the detector has seen of a person in each of some frames, uint8 (3, h, w).

    file: of the video, which is decoded once more. On another machine a face may be found a pixel
    away from its recorded place, so the nearest one is taken.
    """
    crops: dict[int, list[tuple[list[int] | None, torch.Tensor]]] = {}
    numbers = {frame.number for frame in chosen}
    with open_video(file, examiner.max_pixels) as video:
        for frame in video.frames(verdict.frames_wanted):
            if frame.number in numbers:
                faces, of_frame = examiner.crops(as_image(video, frame))
                boxes: list[list[int] | None] = [face.box for face in faces]
                crops[frame.number] = list(zip(boxes or [None], of_frame, strict=True))
    nearest = [
        min(crops[frame.number], key=lambda one: _distance(one[0], frame.box)) for frame in chosen
    ]
    return [crop for _, crop in nearest]


def _distance(box: list[int] | None, other: list[int] | None) -> int:
    """Return how far the sides of two boxes are apart, in pixels."""
    if not box or not other:
        return 0 if box == other else sys.maxsize
    return sum(abs(side - other_side) for side, other_side in zip(box, other, strict=True))
