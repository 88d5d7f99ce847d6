"""Where an image says that it comes from: C2PA manifest, IPTC source type, EXIF of the camera.

None of it decides a verdict. A signed manifest is as good as its signer. Anybody can write EXIF and
IPTC fields, and most images on the internet have lost them. Nothing is fetched: a manifest on
another machine is named and not read.
"""

import json
import re
from functools import cache
from io import BytesIO
from typing import Any, BinaryIO, Literal

import pydantic
from PIL import Image
from PIL.ExifTags import IFD, Base

from stages.lib.core.errors import short
from stages.lib.core.schema import FrozenModel
from stages.lib.images.decoding import formats_of

SOURCE_TYPE = re.compile(r"cv\.iptc\.org/newscodes/digitalsourcetype/(\w+)", re.IGNORECASE)
XMP_NAMES = ("xmp", "XML:com.adobe.xmp")
CAMERA = {
    "make": Base.Make,
    "model": Base.Model,
    "software": Base.Software,
    "taken": Base.DateTime,
}
State = Literal["trusted", "valid", "broken", "elsewhere"]
STATES: dict[str, State] = {"Trusted": "trusted", "Valid": "valid"}
UNTRUSTED = "signingCredential.untrusted"
MANIFEST = b"jumdc2pa"  # the description box of its store (JUMBF)
MAX_TEXT = 200  # characters of a field that are shown
MAX_ENTRIES = 20  # of a list that are shown


class Manifest(FrozenModel):
    """A C2PA manifest (c2pa.org, Content Credentials): who has signed what about the image."""

    state: State  # valid: whole, but no list vouches for the signer
    signer: str
    generator: str  # the program or camera that made the claim
    actions: list[str]  # such as c2pa.created
    source_types: list[str]  # of IPTC, such as digitalCapture or trainedAlgorithmicMedia
    problems: list[str]  # what a broken one fails on


class Provenance(FrozenModel):
    """What a file says about its origin; empty where it says nothing."""

    c2pa: Manifest | None
    source_types: list[str]  # IPTC DigitalSourceType in the XMP of the file, unsigned
    camera: dict[str, str]  # unsigned fields
    camera_from: Literal["EXIF", "header"] = "EXIF"  # of an image, or of a video

    def __str__(self) -> str:
        """Return it in words, in one line; "" where the file says nothing."""
        words = []
        if self.c2pa:
            signer = self.c2pa.signer or "nobody named"
            words.append(f"C2PA {self.c2pa.state}, signed by {signer}")
            words += [f"says {word}" for word in self.c2pa.actions + self.c2pa.source_types]
            words += self.c2pa.problems
        words += [f"IPTC says {word}" for word in self.source_types]
        words += [f"{self.camera_from} {name} {value}" for name, value in self.camera.items()]
        return "; ".join(words)


def read_provenance(content: bytes) -> Provenance:
    """Return what an image file says about its origin; the pixels are not decoded."""
    xmp, camera = "", {}
    try:
        with Image.open(BytesIO(content), formats=formats_of(content)) as image:
            raw = next((image.info[name] for name in XMP_NAMES if name in image.info), "")
            xmp = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
            camera = _camera(image.getexif())
    except Exception:  # damaged fields say nothing
        pass
    manifest = read_manifest(BytesIO(content))
    return Provenance(c2pa=manifest, source_types=source_types_in(xmp), camera=camera)


def _camera(exif: Image.Exif) -> dict[str, str]:
    fields = dict(exif) | dict(exif.get_ifd(IFD.Exif))
    camera = {name: fields.get(tag) for name, tag in CAMERA.items()}
    camera["taken"] = fields.get(Base.DateTimeOriginal) or camera["taken"]
    return {name: short(value, MAX_TEXT) for name, value in camera.items() if value}


def read_manifest(file: BinaryIO) -> Manifest | None:
    """Return the active C2PA manifest of an open file, or None where it has none."""
    import c2pa

    try:
        reader = c2pa.Reader.try_create(None, file, None, _offline())
        store: dict[str, Any] = json.loads(reader.json()) if reader else {}
    except c2pa.C2paError.NotSupported:  # pyrefly: ignore[missing-attribute]
        return None
    except c2pa.C2paError as error:
        if str(error).startswith("Remote"):
            return _unread("elsewhere", str(error))
        if not _names_c2pa(file):  # a damaged file without a manifest
            return None
        return _unread("broken", str(error))
    if not store.get("active_manifest"):
        return None
    try:
        return _manifest(store)
    except (KeyError, TypeError, AttributeError, IndexError, pydantic.ValidationError) as error:
        return _unread("broken", f"of an unknown form: {error!r}")


def _names_c2pa(file: BinaryIO) -> bool:
    """Return whether the beginning of a manifest is anywhere in a file."""
    file.seek(0)
    before = b""
    while block := file.read(1 << 20):
        if MANIFEST in before + block:
            return True
        before = block[1 - len(MANIFEST) :]
    return False


def _unread(state: State, problem: str) -> Manifest:
    """Return a manifest that cannot be read: its state and its problem."""
    return Manifest(
        state=state,
        signer="",
        generator="",
        actions=[],
        source_types=[],
        problems=[short(problem, MAX_TEXT)],
    )


def _manifest(store: dict[str, Any]) -> Manifest:
    """Return the active manifest of a store, as c2pa writes it in JSON."""
    manifest = store["manifests"][store["active_manifest"]]
    actions = []
    for assertion in manifest.get("assertions", []):
        if assertion["label"].startswith("c2pa.actions"):
            actions += assertion["data"].get("actions", [])
    actions = actions[:MAX_ENTRIES]
    signature = manifest.get("signature_info", {})
    signer = [signature[key] for key in ("issuer", "common_name") if signature.get(key)]
    generators = manifest.get("claim_generator_info", [])
    codes = [status["code"] for status in store.get("validation_status", [])][:MAX_ENTRIES]
    return Manifest(
        state=STATES.get(store["validation_state"], "broken"),
        signer=short(", ".join(signer), MAX_TEXT),
        generator=short(generators[0].get("name", "") if generators else "", MAX_TEXT),
        actions=[short(action.get("action", "")) for action in actions],
        source_types=source_types_in(json.dumps(actions)),
        problems=[short(code) for code in codes if code != UNTRUSTED],
    )


def source_types_in(text: str) -> list[str]:
    """Return the names of IPTC's source types in a text."""
    return sorted({short(name) for name in SOURCE_TYPE.findall(text)})[:MAX_ENTRIES]


@cache
def _offline() -> Any:
    """Return settings for reading a manifest without asking any other machine."""
    import c2pa

    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False}
    return c2pa.Context(c2pa.Settings.from_dict({"verify": verify}))
