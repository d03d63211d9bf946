"""What is taken out of ids, texts and images before they come to rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.anonymization import face, text_recall, untouched
from runtime.anonymize import hashed, text
from runtime.anonymize.images import faces, image
from tests import pictures

HIDDEN_NAME = b"a person's name"


def with_metadata(image_format: str) -> bytes:
    """A picture that carries a name and a place beside its pixels."""
    picture = pictures.scene(320, 240)
    exif = Image.Exif()
    exif[0x010E] = HIDDEN_NAME.decode()
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    data = io.BytesIO()
    extra = {"comment": HIDDEN_NAME} if image_format == "JPEG" else {}
    picture.save(data, image_format, exif=exif, **extra)
    return data.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def test_hashes_are_keyed_and_stable() -> None:
    assert hashed("robot-1", "salt") == hashed("robot-1", "salt")
    assert hashed("robot-1", "salt") != hashed("robot-1", "other")
    assert hashed("robot-1", "salt") != hashed("robot-2", "salt")
    assert len(hashed("robot-1", "salt")) == 32


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("mail anna@example.org the photo", "mail [EMAIL] the photo"),
        ("call (650) 253-0123 when done", "call [PHONE] when done"),
        ("the card 4111 1111 1111 1111 lies here", "the card [CARD] lies here"),
        ("the camera at 10.0.0.7 is dirty", "the camera at [IP] is dirty"),
    ],
)
def test_what_has_a_form_is_found_at_both_levels(said: str, kept: str) -> None:
    assert text(said, "partial") == text(said, "full") == kept
    assert text(said, "none") == said


def test_names_go_at_level_full_only() -> None:
    said = "my name is Anna Miller, bring me the cup"
    assert text(said, "partial") == said
    assert text(said, "full") == "my name is [NAME], bring me the cup"


def test_instructions_without_a_person_stay_as_they_are() -> None:
    assert untouched() == 1


def test_the_recall_that_the_docs_state_holds() -> None:
    found = {kind: (partial, full) for kind, partial, full in text_recall(40, seed=1)}
    for kind in ("mail address", "telephone number", "payment card", "social security number", "IP address"):
        assert found[kind] == (1, 1), kind
    for kind in ("postal address", "name after a title", "name, introduced", "name, addressed", "name, owning"):
        assert found[kind][1] >= 0.95, kind


@given(st.text(max_size=200), st.sampled_from(["partial", "full"]))
def test_anonymizing_twice_changes_nothing_more(said: str, level: str) -> None:
    once = text(said, "full" if level == "full" else "partial")
    assert text(once, "full" if level == "full" else "partial") == once


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_metadata_goes_and_the_pixels_stay(image_format: str) -> None:
    data = with_metadata(image_format)
    assert HIDDEN_NAME in data
    kept = image(data, image_format.lower(), "partial")
    assert kept is not None
    assert HIDDEN_NAME not in kept
    with Image.open(io.BytesIO(kept)) as opened:
        assert dict(opened.getexif()) == {}
    assert (pixels(kept) == pixels(data)).all()


def test_a_picture_that_says_which_way_is_up_is_turned_before_it_forgets() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    pictures.scene(320, 200).save(data, "JPEG", exif=exif)
    kept = image(data.getvalue(), "jpeg", "partial")
    assert kept is not None
    assert pixels(kept).shape == (320, 200, 3)


def test_a_face_is_covered_at_level_full_and_the_rest_of_the_picture_stays() -> None:
    rng = np.random.default_rng(3)
    drawn = next(picture for picture in (face(160, rng) for _ in range(20)) if faces(picture))
    kept = image(drawn.tobytes(), "rgb8", "full", width=drawn.shape[1], height=drawn.shape[0])
    assert kept is not None
    after = np.frombuffer(kept, np.uint8).reshape(drawn.shape)
    x, y, w, h = faces(drawn)[0]
    before_detail = drawn[y : y + h, x : x + w].astype(float).std()
    assert np.abs(after[y : y + h, x : x + w].astype(float) - drawn[y : y + h, x : x + w]).mean() > before_detail / 8
    assert (after[:20, :20] == drawn[:20, :20]).all()
    assert faces(after) == []


@pytest.mark.parametrize("data", [b"", b"no picture", pictures.jpeg()[:500]])
def test_what_cannot_be_read_cannot_be_kept(data: bytes) -> None:
    assert image(data, "jpeg", "full") is None
    assert image(data, "gif", "partial") is None
    assert image(data, "jpeg", "none") == data


@given(st.binary(max_size=400), st.sampled_from(["jpeg", "png", "rgb8", "webp"]))
def test_no_bytes_make_it_fail(data: bytes, encoding: str) -> None:
    image(data, encoding, "full", width=8, height=8)
