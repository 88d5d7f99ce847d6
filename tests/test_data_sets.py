"""Every data set of data/README.md, small but whole, trained and judged by its command (slow)."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from stages.lib.core.labels import FAKE, REAL
from stages.lib.core.params import read_yaml
from tests.conftest import TINY, clone_project, draw_dataset, easy_pixels, readme_commands, run

NUMBER = 24  # of clips or images of each class
FRAMES = 6


def pixels_of(target: int, seed: int, frame: int = 0) -> np.ndarray:
    """Return a smooth image, uint8 (48, 48, 3), with a checked square where it is a fake."""
    coarse = np.random.default_rng([target, seed]).integers(40, 180, (6, 6, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC)
    pixels = np.roll(np.asarray(smooth), frame, axis=1)
    if target == FAKE:
        pixels[8:32, 8:32] ^= (np.indices((24, 24)).sum(axis=0) // 4 % 2 * 64).astype(np.uint8)[
            ..., None
        ]
    return pixels


def draw_image(path: Path, target: int, seed: int) -> None:
    """Draw an image that is easier than the clips, which are more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(easy_pixels(np.random.default_rng([target, seed]), target)).save(path)


def draw_clip(path: Path, target: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(pixels_of(target, seed, number), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def draw_folders(root: Path) -> None:
    for index in range(NUMBER):
        for target, name in ((REAL, "real"), (FAKE, "fake/swap")):
            draw_image(root / f"train/{name}/{index}.png", target, index)
            draw_image(root / f"val/{name}/{index}.jpg", target, 100 + index)


def draw_manifest(root: Path) -> None:
    rows = []
    for index in range(2 * NUMBER):
        for target, word in ((REAL, "photo"), (FAKE, "AI-generated")):
            draw_image(root / f"{word}_{index}.png", target, index)
            rows.append({"path": f"{word}_{index}.png", "label": word, "group": f"person {index}"})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)


def draw_faceforensics(root: Path) -> None:
    numbers = [f"{index:03d}" for index in range(2 * NUMBER)]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    for index, (one, other) in enumerate(pairs):
        for offset, name in enumerate((one, other)):
            clip = root / f"original_sequences/youtube/c23/videos/{name}.mp4"
            draw_clip(clip, REAL, 2 * index + offset)
        for method, name in (("Deepfakes", f"{one}_{other}"), ("Face2Face", f"{other}_{one}")):
            clip = root / f"manipulated_sequences/{method}/c23/videos/{name}.mp4"
            draw_clip(clip, FAKE, 2 * index + (method == "Deepfakes"))
    (root / "splits").mkdir()
    for name, part in (("train", pairs[:12]), ("val", pairs[12:20]), ("test", pairs[20:])):
        (root / f"splits/{name}.json").write_text(json.dumps(part))


def draw_celebrities(root: Path) -> None:
    testing = []
    for index in range(NUMBER):
        real, fake = f"Celeb-real/id{index}_0000", f"Celeb-synthesis/id{index}_id0_0000"
        draw_clip(root / f"{real}.mp4", REAL, index)
        draw_clip(root / f"{fake}.mp4", FAKE, index)
        draw_clip(root / f"YouTube-real/{index:05d}.mp4", REAL, 100 + index)
        if index < 6:
            testing += [f"1 {real}.mp4", f"0 {fake}.mp4"]
    (root / "List_of_testing_videos.txt").write_text("\n".join(testing) + "\n")


def draw_challenge(root: Path) -> None:
    for part in range(2):
        folder, facts = root / f"dfdc_train_part_{part}", {}
        for index in range(NUMBER):
            real, fake = f"real{part}x{index}.mp4", f"fake{part}x{index}.mp4"
            draw_clip(folder / real, REAL, 100 * part + index)
            draw_clip(folder / fake, FAKE, 100 * part + index)
            facts[real] = {"label": "REAL", "split": "train", "original": None}
            facts[fake] = {"label": "FAKE", "split": "train", "original": real}
        (folder / "metadata.json").write_text(json.dumps(facts))


def draw_benchmark(root: Path) -> None:
    labels: dict[str, dict] = {}
    for label, target in (("UADFV_Real", REAL), ("UADFV_Fake", FAKE)):
        labels[label] = {"train": {}, "val": {}, "test": {}}
        for index in range(NUMBER):
            frames = [f"UADFV/{label}/{index}/{number}.png" for number in range(3)]
            for number, frame in enumerate(frames):
                draw_image(root / frame, target, 10 * index + number)
            split = "train" if index < 14 else "val" if index < 20 else "test"
            labels[label][split][str(index)] = {"label": label, "frames": frames}
    (root / "UADFV.json").write_text(json.dumps({"UADFV": labels}))


def draw_parquet(root: Path) -> None:
    """Draw what the library `datasets` of Hugging Face writes, with a column for the generator."""
    for name, first in (("train", 0), ("test", 100)):
        images, labels, models = [], [], []
        for index in range(first, first + 2 * NUMBER):
            for target, model in ((REAL, ""), (FAKE, f"flux-{index % 2}")):
                draw_image(root / "drawn.png", target, index)
                images.append({"bytes": (root / "drawn.png").read_bytes(), "path": None})
                labels.append("fake" if target == FAKE else "real")
                models.append(model)
        (root / "drawn.png").unlink()
        (root / "data").mkdir(exist_ok=True)
        table = pa.table({"image": images, "label": labels, "model": models})
        parquet.write_table(table, root / f"data/{name}-00000-of-00001.parquet", row_group_size=9)


def draw_image_folder(root: Path) -> None:
    for name, first in (("train", 0), ("validation", 100)):
        lines = []
        for index in range(first, first + 2 * NUMBER):
            for target, word in ((REAL, "photo"), (FAKE, "deepfake")):
                draw_image(root / name / f"{word}_{index}.png", target, index)
                facts = {"file_name": f"{word}_{index}.png", "label": target, "group": index}
                lines.append(json.dumps(facts))
        (root / name / "metadata.jsonl").write_text("\n".join(lines))


def draw_archives(root: Path) -> None:
    for name, first in (("train-000000", 0), ("train-000001", 50), ("val-000000", 100)):
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for index in range(first, first + NUMBER):
                for target in (REAL, FAKE):
                    draw_image(root / "drawn.png", target, index)
                    archive.add(root / "drawn.png", f"{index}_{target}.png")
                    (root / "label").write_text(str(target))
                    archive.add(root / "label", f"{index}_{target}.cls")
    (root / "drawn.png").unlink()
    (root / "label").unlink()


DRAWN: dict[str, Callable[[Path], object]] = {
    "faces": draw_folders, "mine": draw_manifest, "FaceForensics++": draw_faceforensics,
    "Celeb-DF-v2": draw_celebrities, "dfdc": draw_challenge, "DeepfakeBench": draw_benchmark,
    "OpenFake": draw_parquet, "hub-faces": draw_image_folder, "shards": draw_archives,
    "ffdi": lambda root: draw_dataset(root, {"train": 60, "val": 40, "test": 10}),
}  # fmt: skip
OF_VIDEOS = ["faceforensics", "celeb_df", "dfdc", "deepfakebench"]
LAYOUTS = ["folders", "manifest", *OF_VIDEOS, "parquet", "imagefolder", "webdataset"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone_project(tmp_path_factory.mktemp("data_sets"), TINY)


def commands() -> list[str]:
    """Return the commands of data/README.md, and the first one with the competition's layout."""
    found = readme_commands("dvc exp run publish -S data.root=/data/faces")
    return [*found, found[0].replace("/data/faces", "/data/ffdi")]


def test_a_path_with_any_letters_is_quoted_as_the_front_page_shows(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The first stage alone runs, after DVC has written the path into params.yaml."""
    _, quoted = readme_commands("dvc exp run publish -S data.root=/data/ffdi")
    command = quoted.replace("publish", "sample").replace("$HOME/", "$PLACE/it~ {is} = #1: ")
    clone = clone_project(tmp_path_factory.mktemp("quoted"), TINY)
    run("bash", "-c", command, cwd=clone, PLACE="/data")
    expected = "/data/it~ {is} = #1: my faces (1) [all], données 人脸"
    assert read_yaml(clone / "params.yaml")["data"]["root"] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "layout"),
    list(zip(commands(), [*LAYOUTS, "competition"], strict=True)),
    ids=[*LAYOUTS, "competition"],
)
def test_a_data_set_is_trained_on_and_judged_by_its_command(
    clone: Path, tmp_path: Path, command: str, layout: str
) -> None:
    name = command.split("/data/")[1].split()[0]
    (tmp_path / name).mkdir()
    DRAWN[name](tmp_path / name)
    run("git", "checkout", "-q", ".", cwd=clone)  # the parameters of the command before
    done = run("bash", "-c", command.replace("/data/", f"{tmp_path}/"), cwd=clone)
    assert f"{name}: layout {layout}: " in done.stdout + done.stderr
    metrics = json.loads((clone / "metrics/evaluation.json").read_text())
    assert metrics["val"]["auc"] > 0.8
    assert ("video_auc" in metrics["val"]) == (layout in OF_VIDEOS)
    judged = run("python", "-m", "stages.tools.judge", "own", cwd=clone)
    assert judged.stdout.splitlines()[-1] == "metrics/judged"
