"""What peers send, read: observations by their keys, pictures, and arrays in every codec."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ingest_api.peers.arrays import PictureFile, from_json, pack_vla_eval, to_json, unpack
from ingest_api.peers.observation import observe
from ingest_api.peers.pictures import images_of
from ingest_api.problems import Problem
from schemas import openpi_wire
from schemas.cards import ObservationKeys
from schemas.messages import ImageEncoding
from schemas.openpi_wire import array_of
from schemas.topics import MAX_INLINE_IMAGE_BYTES
from tests.cards import model
from tests.pictures import encoded, scene

PIXELS = np.asarray(scene())


def test_droid_and_aloha_are_found_by_name() -> None:
    two = model(cameras=("base", "wrist"), state_dim=8)
    left, wrist = PIXELS, PIXELS[::-1]
    droid = observe(
        {
            "observation/exterior_image_1_left": left,
            "observation/wrist_image_left": wrist,
            "observation/gripper_position": np.array([0.5]),
            "observation/joint_position": np.arange(7.0),
            "prompt": b"do it now",
        },
        two,
    )
    assert droid.state == [0, 1, 2, 3, 4, 5, 6, 0.5]
    assert np.array_equal(np.asarray(droid.pictures["wrist"]), wrist)
    assert droid.instruction == "do it now"
    three = model(cameras=("cam_high", "cam_left_wrist", "cam_right_wrist"))
    chw = np.moveaxis(PIXELS, 2, 0)
    cameras = {"cam_right_wrist": chw[:, ::-1], "cam_left_wrist": chw[:, :, ::-1], "cam_high": chw}
    aloha = observe({"state": np.ones(14), "images": cameras, "prompt": "do it now"}, three)
    assert np.array_equal(np.asarray(aloha.pictures["cam_high"]), PIXELS)
    assert np.array_equal(np.asarray(aloha.pictures["cam_left_wrist"]), PIXELS[:, ::-1])


def test_a_card_says_where_things_are() -> None:
    keys = ObservationKeys(cameras={"base": "video/b"}, state=("q", "g"), instruction="say")
    content = {"video": {"a": PIXELS, "b": PIXELS[::-1]}, "g": 1.0, "q": np.array([2.0]), "say": "x", "prompt": "y"}
    seen = observe(content, model(observation_keys=keys))
    assert np.array_equal(np.asarray(seen.pictures["base"]), PIXELS[::-1])
    assert (seen.state, seen.instruction) == ([2.0, 1.0], "x")
    with pytest.raises(Problem, match="video/a: name its key"):
        observe({**content, "video": {"a": PIXELS}}, model(observation_keys=keys))


def test_pixels_are_recorded_exactly_where_they_fit_and_refused_where_they_do_not() -> None:
    (image,) = images_of({"base": PIXELS}, exact=True)
    assert (image.encoding, image.width, image.height) == (ImageEncoding.IMAGE_ENCODING_RGB8, 224, 224)
    assert image.data == PIXELS.tobytes()
    large = np.asarray(scene(1000, 800))
    with pytest.raises(Problem) as refused:
        images_of({"base": large}, exact=True)
    assert refused.value.status == 413
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    with pytest.raises(Problem):
        images_of({"base": noise}, exact=False)
    shrunk = images_of({"base": np.asarray(scene(1500, 1500, seed=2)), "wrist": large}, exact=False)
    assert sum(len(image.data) for image in shrunk) <= MAX_INLINE_IMAGE_BYTES


def test_a_file_stays_the_file_that_it_is() -> None:
    png = encoded(scene(), "PNG")
    (image,) = images_of({"base": PictureFile(png)}, exact=False)
    assert (image.encoding, image.data) == (ImageEncoding.IMAGE_ENCODING_PNG, png)
    with pytest.raises(Problem):
        images_of({"base": PictureFile(b"GIF89a")}, exact=False)


_arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_]), hnp.array_shapes(max_dims=4, max_side=5)
)


@given(_arrays)
@settings(deadline=None)
def test_arrays_survive_every_codec(array: Any) -> None:
    for found in (
        unpack(openpi_wire.pack({"a": array}))["a"],
        unpack(pack_vla_eval({"a": array}))["a"],
        from_json(json.loads(json.dumps(to_json(array)))),
    ):
        assert found.dtype == array.dtype
        assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")


_plain = st.recursive(
    st.none() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from([b"__ndarray__", b"data", b"dtype", b"shape", "__ndarray__", "__image__", "__numpy__", "data",
                         "dtype", "shape", "format", "type", "payload", "seq", "images", "state", "prompt"]),
        inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@given(_plain | st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_frame_raises_anything_but_a_problem(content: Any) -> None:
    frame = content if isinstance(content, bytes) else msgpack.packb(content)
    assert _status_of(lambda: observe(unpack(frame), model())) in (200, 400, 422)
    assert _status_of(lambda: from_json(content)) in (200, 400)


def _status_of(read: Any) -> int:
    try:
        read()
    except Problem as problem:
        return problem.status
    return 200


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (b"", "|O", []),
        (b"12345678", "<f8", [2]),
        (b"12345678", "<M8", [1]),
        (b"", "<f8", [0] * 9),
        (b"", "<f8", [-1]),
        (b"1", "nonsense", [1]),
        ("text", "<f8", [1]),
        (b"", "(2,)u1", [0]),
    ],
)
def test_what_is_no_array_of_numbers_is_no_array(data: Any, dtype: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"array|dtype|shape"):
        array_of(data, dtype, shape)
