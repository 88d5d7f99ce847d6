"""The cache of decoded images: it changes the speed alone, is shared, and keeps to its limit."""

import errno
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stages import train
from stages.lib.core.errors import UserError
from stages.lib.detector import dataset as dataset_module
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.training import decode_cache
from tests.conftest import run, set_params

SET_BYTES = {"train": 80 * 3 * 32 * 32, "val": 46 * 3 * 32 * 32}
ROOMY = 0.1  # gigabytes


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    set_params(workspace, {"train.num_workers": 0})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that are decoded, as they come."""
    contents: list[bytes] = []
    real_decode = dataset_module.decode
    monkeypatch.setattr(
        dataset_module, "decode", lambda c, p: contents.append(bytes(c)) or real_decode(c, p)
    )
    return contents


def trained_bytes(workspace: Path, **changes: Any) -> dict[str, bytes]:
    set_params(workspace, {f"train.{name}": value for name, value in changes.items()})
    train.main()
    return {path.name: path.read_bytes() for path in sorted(Path("data/model").iterdir())}


def caches() -> set[str]:
    return {path.name for path in Path(".dvc/tmp/decoded").iterdir() if path.is_dir()}


@pytest.mark.parametrize("reencode", [None, [40, 90]])
def test_the_same_model_is_trained_and_nothing_is_decoded_twice(
    workspace: Path, decoded: list[bytes], reencode: list[int] | None
) -> None:
    plain = trained_bytes(workspace, reencode=reencode)
    assert len(decoded) > len(set(decoded))  # two epochs
    decoded.clear()
    assert trained_bytes(workspace, decoded_gb=ROOMY) == plain
    assert len(decoded) == len(set(decoded)) == 80 + 46
    decoded.clear()
    assert trained_bytes(workspace, lr=1e-4) != plain  # another experiment
    assert decoded == []
    assert len(caches()) == 2
    assert sum(path.stat().st_size for path in Path(".dvc/tmp/decoded").rglob("*.arrow")) == (
        pytest.approx(sum(SET_BYTES.values()), rel=0.05)
    )


def test_the_device_trains_the_same_model_whoever_loads_its_images(workspace: Path) -> None:
    """The changes are flips, which have no rounding."""
    plain = trained_bytes(workspace)
    assert trained_bytes(workspace, augment_on="device") == plain
    assert trained_bytes(workspace, decoded_gb=ROOMY) == plain
    assert trained_bytes(workspace, gpu_images_gb=ROOMY) == plain


def test_what_does_not_fit_on_the_gpu_is_copied_and_that_is_said(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"augment_on": "device", "decoded_gb": ROOMY, "epochs": 1}
    trained_bytes(workspace, **options, gpu_images_gb=0.9 * SET_BYTES["train"] / 1e9)
    assert "is too small for 0.000246 GB: copying each batch" in capsys.readouterr().out


def test_a_wish_for_a_gpu_that_is_not_there_is_refused(workspace: Path) -> None:
    for name, value in (("gpu_decoding", True), ("gpu_images_gb", 0.1)):
        changes = {"decoded_gb": 0.0 if name == "gpu_decoding" else ROOMY, name: value}
        set_params(workspace, {"train.gpu_decoding": False, "train.gpu_images_gb": 0.0})
        with pytest.raises(
            UserError, match=rf"train.{name} = {value}: images are changed on the CPU"
        ):
            trained_bytes(workspace, **changes)


@pytest.mark.slow
def test_two_processes_share_what_the_first_one_decodes(workspace: Path) -> None:
    plain = trained_bytes(workspace, model="test_vit", decoded_gb=0)
    set_params(workspace, {"train.num_processes": 2, "train.decoded_gb": ROOMY})
    done = run("python", "-m", "stages.train", cwd=workspace, TRACKING="off")
    assert done.stdout.count("decoded train for this and later runs") == 1
    files = {path: path.stat().st_ino for path in Path(".dvc/tmp/decoded").rglob("*.arrow")}
    assert len(files) == 2
    assert trained_bytes(workspace, num_processes=1) == plain
    assert {path: path.stat().st_ino for path in files} == files


def test_what_does_not_fit_is_decoded_in_every_epoch_and_that_is_said(
    workspace: Path, decoded: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    trained_bytes(workspace, decoded_gb=0.9 * sum(SET_BYTES.values()) / 1e9)
    assert "is too small: decoding in every epoch" in capsys.readouterr().out
    assert caches() == set()
    assert len(decoded) == 2 * (80 + 46) + 80  # the last ones for the distance


def test_other_images_have_another_cache_and_the_oldest_makes_room(
    workspace: Path, decoded: list[bytes]
) -> None:
    limit = 3.2 * sum(SET_BYTES.values()) / 1e9
    seen = []
    for changes in ({}, {"interpolation": "bicubic"}, {"scaled_decoding": True}):
        trained_bytes(workspace, decoded_gb=limit, epochs=1, **changes)
        seen.append(caches() - set().union(*seen))
    assert [len(new) for new in seen] == [2, 2, 2]
    decoded.clear()
    trained_bytes(workspace, interpolation=None, scaled_decoding=False)  # the first again
    assert decoded == []
    trained_bytes(workspace, scaled_decoding=True)  # a fourth
    assert seen[0] <= caches()
    assert not seen[1] & caches()
    assert len(caches()) == 6


def test_an_interrupted_decoding_leaves_nothing_that_counts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_decode = dataset_module.decode
    count = iter(range(100))

    def stopped(content: bytes, preprocessing: Preprocessing) -> Any:
        if next(count) == 90:
            raise KeyboardInterrupt
        return real_decode(content, preprocessing)

    plain = trained_bytes(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "decode", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained_bytes(workspace, decoded_gb=ROOMY)
    assert len(caches()) == 1  # the training set's, whole
    assert trained_bytes(workspace) == plain


def test_a_flipped_bit_in_a_cache_is_not_trained_on(workspace: Path) -> None:
    trained_bytes(workspace, decoded_gb=ROOMY)
    for file in workspace.glob(".dvc/tmp/decoded/*/*.arrow"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"decoded/\w+: \w+.jpg is damaged; remove this"):
        trained_bytes(workspace, seed=1)


def test_what_a_killed_run_has_left_is_removed_unless_someone_writes_it(workspace: Path) -> None:
    root = Path(".dvc/tmp/decoded")
    for name in (".dead.partial", ".half.gone", ".live.partial"):
        (root / name).mkdir(parents=True)
    with FileLock(root / "live.lock"):
        trained_bytes(workspace, decoded_gb=ROOMY)
    assert {name for name in caches() if name[0] == "."} == {".live.partial"}


def test_a_full_disk_is_one_clear_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode_cache, "make_loader", full)
    with pytest.raises(UserError, match="the disk is full; set train.decoded_gb to 0"):
        trained_bytes(workspace, decoded_gb=ROOMY)
    assert caches() == set()
