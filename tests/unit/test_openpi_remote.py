"""A policy that runs on a server of openpi's wire: what it sends, and what becomes of requests when that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from websockets.sync.client import ClientConnection, connect

from gpu_consumers.conversions import conversions_of
from gpu_consumers.openpi_client import Endpoint, OpenpiClient, ServerError
from gpu_consumers.pipeline import Worker
from gpu_consumers.policies.contract import Observation, Policy, PolicyError, RemotePolicy
from gpu_consumers.policies.openpi_remote import OpenpiRemotePolicy
from gpu_consumers.policies.registry import load_options, load_policy
from runtime.errors import Fatal, Retry
from runtime.settings import Settings
from schemas.cards import ModelCard
from schemas.messages import WorkerHeartbeat
from schemas.openpi_wire import pack, unpack
from schemas.topics import WORKERS
from tests.cards import cards, model
from tests.openpi_server import OpenpiServer, chunk_of, openpi_server
from tests.unit.worker_case import CARD, Running, code_of

HORIZON, DIM = 10, 7


def card(url: str, **changes: Any) -> ModelCard:
    config = {"url": url, "preset": "libero", "timeout_s": 5.0, **changes.pop("config", {})}
    fields = {
        "policy": "openpi_remote",
        "cameras": ("base", "wrist"),
        "state_dim": 8,
        "action_dim": DIM,
        "horizon": HORIZON,
        "batch_sizes": (1, 2, 4),
        "policy_config": config,
        **changes,
    }
    return model(**fields)


def observation(seed: int = 0, cameras: tuple[str, ...] = ("base", "wrist"), state_dim: int = 8) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        request_id=f"r{seed}",
        instruction="put the bowl on the plate",
        images={camera: rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for camera in cameras},
        state=rng.random(state_dim, dtype=np.float32),
        seed=seed,
    )


@pytest.fixture
def server() -> Iterator[OpenpiServer]:
    with openpi_server(chunk_of(50, DIM)) as running:
        yield running


def run(policy: Policy, *observations: Observation) -> list[Any]:
    return policy.finish(policy.infer([policy.prepare(one) for one in observations]), len(observations))


def test_libero_gets_its_keys_pictures_of_224_and_the_first_steps_come_back(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url), "cpu")
    (chunk,) = run(policy, observation())
    assert (chunk.shape, chunk.dtype) == ((HORIZON, DIM), np.float32)
    (seen,) = server.seen
    assert set(seen) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert (seen["observation/image"].shape, seen["observation/image"].dtype) == ((224, 224, 3), np.uint8)
    np.testing.assert_array_equal(seen["observation/state"], observation().state)
    assert not seen["observation/image"][:20].any(), "a wide picture is padded above and below"
    assert seen["observation/image"][112].any()


def test_droid_gets_its_state_in_two_parts(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url, config={"preset": "droid"}), "cpu")
    run(policy, observation())
    (seen,) = server.seen
    assert seen["observation/joint_position"].shape == (7,)
    np.testing.assert_array_equal(seen["observation/gripper_position"], observation().state[7:8])
    assert {"observation/exterior_image_1_left", "observation/wrist_image_left"} < set(seen)


def test_aloha_gets_nested_cameras_with_channels_first(server: OpenpiServer) -> None:
    aloha = card(server.url, config={"preset": "aloha"}, cameras=("high", "left"), state_dim=14)
    run(load_policy(aloha, "cpu"), observation(cameras=("high", "left"), state_dim=14))
    (seen,) = server.seen
    assert {name: image.shape for name, image in seen["images"].items()} == {
        "cam_high": (3, 224, 224),
        "cam_left_wrist": (3, 224, 224),
    }
    assert seen["state"].shape == (14,)


def test_own_keys_need_no_preset(server: OpenpiServer) -> None:
    keys = {"preset": "", "images": {"base": "cam.0"}, "state": {"q": (0, 2)}, "prompt": "task", "image_side": 0}
    own = card(server.url, config=keys, cameras=("base",), state_dim=2)
    server.answer = lambda seen: {"actions": np.zeros((HORIZON, DIM))}
    run(load_policy(own, "cpu"), observation(cameras=("base",), state_dim=2))
    (seen,) = server.seen
    assert (seen["cam"]["0"].shape, seen["q"].shape) == ((120, 160, 3), (2,))
    assert seen["task"] == "put the bowl on the plate"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"preset": ""}, "name a preset"),
        ({"preset": "libero", "images": {"base": "x"}}, "name a preset"),
        ({"url": "http://host"}, "url"),
        ({"preset": "aloha"}, "takes up to 14 values"),
        ({"preset": "", "images": {"base": "x"}}, "camera wrist"),
    ],
)
def test_a_card_that_does_not_fit_the_server_is_refused_at_the_start(
    server: OpenpiServer, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(Fatal, match=says):
        load_policy(card(server.url, config=config), "cpu")


def test_a_batch_goes_out_at_once_over_connections_that_are_kept(server: OpenpiServer) -> None:
    together = threading.Barrier(4, timeout=20)

    def answer(seen: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return {"actions": np.full((HORIZON, DIM), seen["observation/state"][0])}

    server.answer = answer
    policy = load_policy(card(server.url), "cpu")
    for start in (0, 10):
        observations = [observation(start + number) for number in range(4)]
        chunks = run(policy, *observations)
        assert [chunk[0, 0] for chunk in chunks] == [one.state[0] for one in observations], "in order"
    assert server.most_at_once == 4
    assert len(server.connections) == 4


def test_a_key_is_sent_as_openpi_wants_it_and_a_wrong_one_is_said_so() -> None:
    with openpi_server(chunk_of(50, DIM), key="secret") as locked:
        right, wrong = (Settings(_env_file=None, policy_api_key=SecretStr(key)) for key in ("secret", "wrong"))
        assert len(load_policy(card(locked.url), "cpu", load_options(right)).revision) == 16
        with pytest.raises(Fatal, match="POLICY_API_KEY"):
            load_policy(card(locked.url), "cpu", load_options(wrong))


def test_a_wrong_path_is_said_so(server: OpenpiServer) -> None:
    with pytest.raises(Fatal, match="404"):
        load_policy(card(server.url + "/elsewhere"), "cpu")


def test_a_traceback_fails_that_observation_and_is_told_to_nobody(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url), "cpu")
    server.answer = lambda seen: "Traceback (most recent call last): /home/secret/model.py"
    with pytest.raises(ServerError) as failed:
        run(policy, observation())
    assert "secret" not in str(failed.value)
    server.answer = chunk_of(50, DIM)
    run(policy, observation())


@pytest.mark.parametrize(
    "answer",
    [{}, {"actions": [1, 2]}, {"actions": np.zeros((HORIZON - 1, DIM))}, {"actions": np.zeros((HORIZON, DIM + 1))}],
)
def test_actions_that_do_not_fit_the_card_are_never_handed_on(server: OpenpiServer, answer: dict[str, Any]) -> None:
    policy = load_policy(card(server.url), "cpu")
    server.answer = lambda seen: answer
    with pytest.raises(ValueError, match="server's a"):
        run(policy, observation())


def test_a_server_that_is_silent_is_given_up_after_its_time(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url, config={"timeout_s": 0.2}), "cpu")
    server.answer = lambda seen: None
    with pytest.raises(Retry, match="no answer in time"):
        run(policy, observation())


def test_a_server_that_comes_back_is_asked_again_and_pauses_grow_meanwhile(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url), "cpu")
    run(policy, observation())
    server.stop()
    pauses = []
    for _ in range(3):
        with pytest.raises(Retry) as away:
            run(policy, observation())
        pauses.append(away.value.after_s)
    assert pauses == sorted(set(pauses))
    server.start()
    run(policy, observation())


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unnoticed(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url), "cpu")
    run(policy, observation())
    server.stop()
    server.start()
    run(policy, observation())


def test_another_model_behind_the_same_address_ends_the_worker(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url, config={"volatile_metadata": ("session",)}), "cpu")
    server.stop()
    server.metadata = {"model": "test", "session": 2}
    server.start()
    run(policy, observation())
    server.stop()
    server.metadata = {"model": "another"}
    server.start()
    with pytest.raises(Fatal, match="another model"):
        run(policy, observation())


def test_an_observation_that_does_not_fit_is_refused(server: OpenpiServer) -> None:
    policy = load_policy(card(server.url), "cpu")
    with pytest.raises(PolicyError, match="state"):
        policy.prepare(observation(state_dim=3))
    with pytest.raises(PolicyError, match="wrist"):
        policy.prepare(observation(cameras=("base",)))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", pack({"a": 1})[:-1], b"\x82\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00"]
)
def test_bytes_that_are_no_message_are_an_error_of_one_kind(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        unpack(data)


def test_an_array_of_objects_is_not_unpacked() -> None:
    evil = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "|O", b"shape": [1]}
    with pytest.raises(ValueError, match="numbers"):
        unpack(pack({"actions": evil}))


class RemoteScript:
    """Stands for a remote policy: away while `away` is set."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.card, self.revision, self.device = CARD, inner.revision, "remote"
        self.away = threading.Event()
        self.asked = 0
        self.probed = 0

    def prepare(self, one: Observation) -> Any:
        return self._inner.prepare(one)

    def infer(self, batch: Any) -> Any:
        self.asked += 1
        if self.away.is_set():
            raise Retry("away", after_s=0.05)
        return self._inner.infer(batch)

    def finish(self, raw: Any, size: int) -> Any:
        return self._inner.finish(raw, size)

    def probe(self) -> None:
        self.probed += 1
        if self.away.is_set():
            raise Retry("away", after_s=0.05)

    def close(self) -> None:
        """Nothing is open."""


def test_what_is_with_a_server_that_hangs_does_not_keep_the_worker_from_ending(server: OpenpiServer) -> None:
    policy = OpenpiRemotePolicy(card(server.url, config={"timeout_s": 600.0}))
    asked, answered = threading.Event(), threading.Event()

    def hang(seen: dict[str, Any]) -> None:
        asked.set()
        answered.wait(20)

    server.answer = hang
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            run(policy, observation())
        except Retry as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert asked.wait(20)
    policy.close()
    asking.join(20)
    answered.set()
    assert not asking.is_alive()
    assert failed
    with pytest.raises((Retry, RuntimeError)):
        run(policy, observation())


def test_a_connection_that_opens_while_the_worker_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ClientConnection] = []

    class Opening:
        """Ends the worker between the opening of its connection and the connection's use."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._connection = connect(*args, **kwargs)

        def __enter__(self) -> ClientConnection:
            opened.append(self._connection.__enter__())
            client.close()
            return opened[0]

    monkeypatch.setattr("gpu_consumers.openpi_client.connect", Opening)
    with openpi_server(chunk_of(50, DIM)) as server:
        client = OpenpiClient(Endpoint(url=server.url), connections=1)
        with pytest.raises(Retry, match="ending"):
            client.probe()
        assert opened[0].socket.fileno() == -1


def test_requests_wait_for_a_server_that_is_away_and_the_worker_is_not_live_meanwhile() -> None:
    run_ = Running()
    policy = RemoteScript(run_.policy)
    assert isinstance(policy, RemotePolicy)
    run_.worker = Worker(
        settings=run_.settings,
        policy=policy,
        conversions=conversions_of(CARD, cards(CARD)),
        publisher=run_.publisher,
        build_consumer=run_.build_consumer,
        metrics=run_.metrics,
        lifecycle=run_.lifecycle,
    )
    run_.thread = threading.Thread(target=run_.worker.run)
    run_.start()
    assert run_.broker.wait_for(lambda: bool(run_.broker.records(WORKERS)))
    policy.away.set()
    run_.send("patient", ttl_s=60)
    run_.send("hasty", ttl_s=0.5, robot="robot-2")
    assert code_of(run_.completions(1)["hasty"]) == "expired"
    assert run_.broker.wait_for(lambda: "the policy's server" in run_.worker.waiting())
    assert run_.broker.wait_for(lambda: run_.broker.records(WORKERS)[-1].value is None), "it left"
    policy.away.clear()
    assert run_.completions(2)["patient"].HasField("result")
    assert run_.broker.wait_for(lambda: bool(run_.broker.records(WORKERS)[-1].value)), "it is back"
    policy.away.set()
    run_.send("lost", ttl_s=0.3)
    assert code_of(run_.completions(3)["lost"]) == "expired"
    assert run_.broker.wait_for(lambda: policy.probed > 1), "nobody asks, and it looks all the same"
    policy.away.clear()
    assert run_.broker.wait_for(lambda: "the policy's server" not in run_.worker.waiting())
    assert run_.broker.wait_for(lambda: bool(run_.broker.records(WORKERS)[-1].value))
    assert WorkerHeartbeat.FromString(run_.broker.records(WORKERS)[-1].value or b"").device == "remote"
    assert run_.stop() == 0
    assert run_.committed(3)
