"""Words in folder names and columns that say to which set or class an image belongs."""

import re

from stages.lib.core.labels import FAKE, REAL

SET_WORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test", "eval": "test",
}  # fmt: skip
REAL_WORDS = ("real", "reals", "original", "originals", "authentic", "genuine", "pristine")
FAKE_WORDS = (
    "fake", "fakes", "manipulated", "deepfake", "deepfakes", "synthetic", "synthesis", "generated",
    "forged", "altered", "tampered",
)  # fmt: skip
CLASS_WORDS = dict.fromkeys((*REAL_WORDS, "0"), REAL) | dict.fromkeys((*FAKE_WORDS, "1"), FAKE)
# Words that mean nothing beside others, as in `real_images` or `ai_generated`.
IDLE_WORDS = {
    "image", "images", "img", "imgs", "face", "faces", "frame", "frames", "video", "videos",
    "photo", "photos", "data", "dataset", "set", "sequences", "ai", "cropped", "crops",
}  # fmt: skip


def words_of(name: str) -> list[str]:
    """Return the words of a folder name in lower case, without the idle ones.

    Letters of every script are parts of words: the name `\u975ereal`, not real, is one word.
    """
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    return [word for word in words if word not in IDLE_WORDS] or words


def set_of(name: str) -> str | None:
    """Return train, val or test where the words of a name say one set and at most a class.

    So `training_fake` says it, and the person `Dev_Patel` does not.
    """
    words = [word for word in words_of(name) if word not in CLASS_WORDS]
    sets = {SET_WORDS.get(word) for word in words}
    return sets.pop() if len(sets) == 1 else None


def has_set_word(name: str) -> bool:
    """Return whether one of the words of a name is that of a set, as in `val_2`."""
    return any(word in SET_WORDS for word in words_of(name))


def class_of(name: str) -> int | None:
    """Return 0 or 1 if all words of a name say one class; words of sets are ignored.

    A digit counts beside the word of a class, as in `0_real`, or if it is the whole name. In
    `video_1` it is a number.
    """
    words = [word for word in words_of(name) if word not in SET_WORDS]
    classes = {CLASS_WORDS.get(word) for word in words}
    if len(classes) != 1 or (all(map(str.isdigit, words)) and not is_digit(name)):
        return None
    return classes.pop()


def class_of_folders(path: str) -> int | None:
    """Return the class that the nearest folder of a file says; path: of the file, with /."""
    classes = map(class_of, reversed(path.split("/")[:-1]))
    return next((target for target in classes if target is not None), None)


def is_digit(name: str) -> bool:
    """Return whether a name says a class by a digit alone."""
    return name in (str(REAL), str(FAKE))


def class_of_label(label: str) -> int | None:
    """Return 0 or 1 where a word of a label says a class, as in `DFDC_Real`; None: none does.

    Raises ValueError where words say both, or where the word of a class is a part of another word,
    as in `whichisreal`: such a label may mean either.
    """
    words = [word for word in words_of(label) if not word.isdigit()]
    classes = {CLASS_WORDS[word] for word in words if word in CLASS_WORDS}
    is_hidden = any(real in word for real in REAL_WORDS for word in words)
    if len(classes) > 1 or (is_hidden and not classes):
        raise ValueError(label)
    return classes.pop() if classes else None
