"""Following the persons in a video from frame to frame, by the places of their faces.

A face in one frame and a face in an earlier one are the same person where their boxes overlap. Of
several possible pairs, those are taken whose landmarks are closest together (the Hungarian method),
as in SORT (Bewley et al. 2016, ICIP), without its model of motion: the judged frames are seconds
apart. A person who leaves a place, or whom a cut moves to another one, counts as another person. A
person who takes another one's place does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.lib.images.faces import Face

OVERLAP = 0.3  # least share of the smaller box within the other one
MOST_MISSED = 3  # judged frames without a person, who is still the same one afterwards
NO_PAIR = 1e6  # the cost of two faces whose boxes do not overlap


@dataclass(frozen=True)
class Seen:
    """A face that was seen in a frame."""

    frame: int  # number among the judged frames
    place: int  # of the face in its frame
    face: Face


def follow(frames: Sequence[Sequence[Face]]) -> list[list[Seen]]:
    """Return the persons, the one who is seen first comes first, each as its faces over time.

    frames: the faces in each judged frame.
    """
    persons: list[list[Seen]] = []
    for frame, faces in enumerate(frames):
        known = [person for person in persons if frame - person[-1].frame <= MOST_MISSED + 1]
        costs = np.array([[cost(person[-1].face, face) for face in faces] for person in known])
        found: dict[int, list[Seen]] = {}
        if costs.size:
            for row, place in zip(*linear_sum_assignment(costs), strict=True):
                if costs[row, place] < NO_PAIR:
                    found[int(place)] = known[row]
        for place, face in enumerate(faces):
            if place not in found:
                found[place] = []
                persons.append(found[place])
            found[place].append(Seen(frame, place, face))
    return persons


def cost(before: Face, now: Face) -> float:
    """Return the mean distance of the landmarks of two faces, in sizes of the larger one.

    NO_PAIR where their boxes do not overlap.
    """
    if before.overlap(now) < OVERLAP:
        return NO_PAIR
    distances = np.linalg.norm(before.landmarks - now.landmarks, axis=1)
    return float(distances.mean() / max(before.size, now.size))
