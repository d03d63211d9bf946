"""What every policy promises the worker: one contract, run for each policy and each layout of its weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_consumers.policies.contract import Policy, PolicyError
from gpu_consumers.policies.registry import load_options, load_policy
from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.cards import DType, ModelCard
from tests.cards import model
from tests.openpi_server import chunk_of, openpi_server
from tests.unit.policy_case import deterministic_card, observation, reseeded, run, write_all

#: Batch and single differ by rounding alone.
TOLERANCE = 1e-4
#: Policies whose actions follow from the observation alone.
WITHOUT_NOISE = ("openvla",)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    return write_all(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def openpi_remote() -> Iterator[Policy]:
    """On a server that looks at everything it is sent, and takes a seed."""
    with openpi_server(chunk_of(8, 7)) as server:
        keys = {"images": {"base": "image"}, "state": {"state": (0, 8)}, "seed": "seed"}
        fields = {"policy": "openpi_remote", "policy_config": {"url": server.url, **keys}}
        yield load_policy(deterministic_card().model_copy(update=fields), "cpu")


@pytest.fixture(scope="module", params=["deterministic", "openpi_remote", "pi0", "pi0-lerobot", "openvla"])
def policy(request: pytest.FixtureRequest, cards: dict[str, ModelCard]) -> Policy:
    if request.param == "openpi_remote":
        remote: Policy = request.getfixturevalue("openpi_remote")
        return remote
    return load_policy(cards[request.param], "cpu")


def test_a_chunk_has_the_cards_shape_and_finite_float32_values(policy: Policy) -> None:
    (chunk,) = run(policy, observation(policy.card))
    assert chunk.shape == (policy.card.horizon, policy.card.action_dim)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()


def test_the_same_observation_gives_the_same_chunk(policy: Policy) -> None:
    one = observation(policy.card, 3)
    np.testing.assert_array_equal(run(policy, one)[0], run(policy, one)[0])


def test_the_seed_alone_makes_the_noise(policy: Policy) -> None:
    one = observation(policy.card, 3)
    same = np.array_equal(run(policy, one)[0], run(policy, reseeded(one, 4))[0])
    assert same == (policy.card.policy in WITHOUT_NOISE)


@pytest.mark.parametrize("size", [2, 5, 16])
def test_a_result_does_not_depend_on_the_batch_that_it_rode_in(policy: Policy, size: int) -> None:
    texts = ["reach the blue block", "push the yellow block to the left"]
    observations = [observation(policy.card, i, texts[i % 2]) for i in range(size)]
    together = run(policy, *observations)
    assert len(together) == size
    for one, chunk in zip(observations, together, strict=True):
        np.testing.assert_allclose(chunk, run(policy, one)[0], atol=TOLERANCE)


def test_chunks_come_back_in_the_order_of_their_requests(policy: Policy) -> None:
    first, second = observation(policy.card, 1), observation(policy.card, 2)
    forward, backward = run(policy, first, second), run(policy, second, first)
    np.testing.assert_allclose(forward[0], backward[1], atol=TOLERANCE)
    assert np.abs(forward[0] - forward[1]).max() > TOLERANCE


def test_a_camera_that_is_missing_is_refused_by_name(policy: Policy) -> None:
    with pytest.raises(PolicyError, match=policy.card.cameras[0]):
        policy.prepare(observation(policy.card, images={"somewhere": np.zeros((9, 9, 3), np.uint8)}))


@pytest.mark.parametrize(
    "picture", [np.zeros((224, 224), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_what_is_not_an_rgb_picture_is_refused(policy: Policy, picture: NDArray[np.uint8]) -> None:
    if policy.card.policy in ("deterministic", "openpi_remote"):
        pytest.skip("looks at no picture itself")
    with pytest.raises(PolicyError, match=policy.card.cameras[0]):
        policy.prepare(observation(policy.card, images=dict.fromkeys(policy.card.cameras, picture)))


def test_pictures_of_any_size_are_taken(policy: Policy) -> None:
    for size in ((64, 64, 3), (480, 640, 3), (1, 7, 3)):
        picture = np.full(size, 200, np.uint8)
        (chunk,) = run(policy, observation(policy.card, images=dict.fromkeys(policy.card.cameras, picture)))
        assert np.isfinite(chunk).all()


def test_the_revision_is_the_same_after_loading_again(policy: Policy) -> None:
    assert load_policy(policy.card, "cpu").revision == policy.revision
    assert len(policy.revision) == 16
    assert int(policy.revision, 16) >= 0


def test_an_unknown_field_of_policy_config_is_refused(policy: Policy) -> None:
    with pytest.raises(Fatal, match="speed"):
        load_policy(policy.card.model_copy(update={"policy_config": {"speed": 3}}), "cpu")


def test_weights_that_are_not_there_are_named(policy: Policy) -> None:
    if policy.card.policy in ("deterministic", "openpi_remote"):
        pytest.skip("has no weights of its own")
    with pytest.raises(Fatal, match="no weights folder"):
        load_policy(policy.card.model_copy(update={"weights": ""}), "cpu")
    with pytest.raises(Fatal, match=r"lacks config\.json, model\.safetensors, .*tokenizer\.json"):
        load_policy(policy.card.model_copy(update={"weights": "nowhere"}), "cpu")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["pi0-lerobot", "openvla"])
def test_half_precision_by_setting_runs_and_stays_close(cards: dict[str, ModelCard], name: str, dtype: str) -> None:
    settings = Settings.model_validate({"model_dtype": dtype, "low_cpu_mem_usage": False})
    half = load_policy(cards[name], "cpu", load_options(settings))
    (chunk,) = run(half, observation(cards[name]))
    (exact,) = run(load_policy(cards[name], "cpu"), observation(cards[name]))
    assert np.isfinite(chunk).all()
    assert not np.array_equal(chunk, exact) or name == "openvla"
    if name == "pi0-lerobot":
        np.testing.assert_allclose(chunk, exact, atol=0.5)


def test_the_settings_say_how_weights_are_loaded() -> None:
    assert load_options(Settings(_env_file=None)).dtype is None
    assert load_options(Settings(_env_file=None, model_dtype="bfloat16")).dtype is DType.BFLOAT16
    assert not load_options(Settings(_env_file=None, low_cpu_mem_usage=False)).low_cpu_memory


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(Fatal, match=r"known are: deterministic, openpi_remote, openvla, pi0"):
        load_policy(model(policy="rt9"), "cpu")


def test_faults_need_the_cards_consent() -> None:
    card = deterministic_card()
    (chunk,) = run(load_policy(card, "cpu"), observation(card, 0, "fault nan please"))
    assert np.isfinite(chunk).all()


def test_each_fault_does_what_it_says() -> None:
    card = deterministic_card(faults=True)
    faulty = load_policy(card, "cpu")
    assert np.isnan(run(faulty, observation(card, 0, "a fault nan please"))[0]).any()
    assert np.abs(run(faulty, observation(card, 0, "a fault range please"))[0]).max() > 10
    assert run(faulty, observation(card, 0, "a fault shape please"))[0].shape == (8, 6)
    with pytest.raises(PolicyError):
        run(faulty, observation(card, 0, "a fault refuse please"))
    with pytest.raises(RuntimeError):
        run(faulty, observation(card, 0, "a fault raise please"))


def test_a_faulty_request_leaves_the_rest_of_its_batch_alone() -> None:
    card = deterministic_card(faults=True)
    faulty = load_policy(card, "cpu")
    sound = run(faulty, observation(card, 1))[0]
    both = run(faulty, observation(card, 0, "a fault nan please"), observation(card, 1))
    np.testing.assert_array_equal(both[1], sound)
