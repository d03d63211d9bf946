"""A GPU worker over the in-memory broker, and a policy that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_consumers.conversions import conversions_of
from gpu_consumers.pipeline import Worker, group_of
from gpu_consumers.policies.contract import Observation, PolicyError
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.processor import ConsumerPort, OnCommit
from runtime.settings import Settings
from schemas import headers as h
from schemas.cards import CardSet, ModelCard
from schemas.messages import Completion, Stage
from schemas.topics import RESULTS, WORKERS, accepted_topic, dead_letter_topic
from tests.accepted import headers_of, request
from tests.cards import cards, model
from tests.in_memory import InMemoryBroker

CARD = model(batch_sizes=(1, 2, 4))
ACCEPTED = accepted_topic(CARD.deployment)
GROUP = group_of(CARD)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Scripted:
    """A policy that does what the instruction's last word says, and holds the device while `open` is not set."""

    revision = "0123456789abcdef"
    device = "cpu"

    def __init__(self) -> None:
        self.card = CARD
        #: From now on the device fails on everything.
        self.broken = False
        self.open = threading.Event()
        self.open.set()
        self.busy = threading.Event()
        self.batches: list[list[str]] = []

    def prepare(self, observation: Observation) -> Observation:
        if observation.instruction.endswith("unpreparable"):
            raise ValueError("no such thing")
        if observation.instruction.endswith("unready"):
            self.open.wait(20)
        if observation.instruction.endswith("unwanted"):
            raise PolicyError("this policy does not do that")
        return observation

    def infer(self, batch: Sequence[Observation]) -> list[Observation]:
        if batch[0].request_id != "warm-up":
            self.batches.append([observation.request_id for observation in batch])
            self.busy.set()
            self.open.wait(20)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for observation in batch:
            if observation.instruction.endswith("poison"):
                raise RuntimeError("the device did not like it")
            if observation.instruction.endswith("refused"):
                raise PolicyError("not with this gripper")
            if observation.instruction.endswith("exit"):
                raise SystemExit(3)
            if observation.instruction.endswith("large") and len(batch) > 1:
                raise OutOfMemoryError("CUDA out of memory")
        return list(batch)

    def finish(self, raw: list[Observation], size: int) -> list[NDArray[np.float32]]:
        return [self._chunk(observation) for observation in raw[:size]]

    def _chunk(self, observation: Observation) -> Any:
        chunk = np.full((CARD.horizon, CARD.action_dim), 0.5, np.float32)
        match observation.instruction.split()[-1]:
            case "nan":
                chunk[0, 0] = np.nan
            case "misshapen":
                return chunk[:2]
            case "double":
                return chunk.astype(np.float64)
            case "unfinishing":
                self.open.wait(20)
            case "unfinishable":
                raise RuntimeError("cannot be denormalised")
        return chunk


class Running:
    """A worker on a thread, with what a test needs to drive it."""

    def __init__(self, card_set: CardSet | None = None, **settings: Any) -> None:
        self.broker = InMemoryBroker({ACCEPTED: 2, dead_letter_topic(ACCEPTED): 1, RESULTS: 4, WORKERS: 1})
        self.publisher = self.broker.publisher()
        self.policy = Scripted()
        self.metrics = Metrics()
        self.lifecycle = Lifecycle(10)
        self.hangs: list[str] = []
        self.settings = Settings(_env_file=None, **settings)
        self.worker = Worker(
            settings=self.settings,
            policy=self.policy,
            conversions=conversions_of(*_own(card_set or cards(CARD))),
            publisher=self.publisher,
            build_consumer=self.build_consumer,
            metrics=self.metrics,
            lifecycle=self.lifecycle,
            on_hang=self.hangs.append,
        )
        self.thread = threading.Thread(target=self.worker.run)

    def build_consumer(self, on_commit: OnCommit) -> ConsumerPort:
        return self.broker.consumer(GROUP, on_commit)

    def start(self) -> None:
        self.thread.start()
        # The worker serves from its first heartbeat on; readiness, which waits for the second, is for probes.
        assert self.broker.wait_for(lambda: set(self.worker.waiting()) <= {"its heartbeats"})

    def stop(self) -> int:
        self.policy.open.set()
        self.lifecycle.stop()
        self.thread.join()
        return self.lifecycle.close()

    def send(self, request_id: str, instruction: str = "push the red block", **kwargs: Any) -> None:
        header_names = {"ttl_s", "customer", "partition", "offset"}
        message = request(
            request_id, instruction=instruction, **{k: v for k, v in kwargs.items() if k not in header_names}
        )
        self.send_raw(
            message.SerializeToString(),
            headers_of(message, **{k: v for k, v in kwargs.items() if k in header_names}),
            message.robot_id.encode(),
        )

    def send_raw(self, value: bytes, headers: dict[str, str | int], key: bytes = b"robot-1") -> None:
        self.broker.append(ACCEPTED, value, key, h.encode(headers), 0)

    def hold_device(self) -> None:
        """Keep the device busy with a request of its own until `policy.open` is set."""
        self.policy.open.clear()
        self.send("plug", robot="plug")
        assert self.policy.busy.wait(10)

    def queue_up(self, *sends: Callable[[], None]) -> None:
        """Let requests gather behind a busy device, then free it."""
        self.hold_device()
        for send in sends:
            send()
        assert self.broker.wait_for(lambda: self.worker.queue_depth == len(sends))
        self.policy.open.set()

    def completions(self, count: int) -> dict[str, Completion]:
        """Completions by request id, once there are `count`; never more, never two for one request."""
        assert self.broker.wait_for(lambda: len(self.broker.records(RESULTS)) >= count), self.broker.records(RESULTS)
        found = [Completion.FromString(record.value or b"") for record in self.broker.records(RESULTS)]
        by_id = {completion.request.request_id: completion for completion in found}
        assert len(by_id) == len(found) == count
        return by_id

    def committed(self, offset: int) -> bool:
        return self.broker.wait_for(lambda: self.broker.committed(GROUP, ACCEPTED, 0) == offset)


def _own(card_set: CardSet) -> tuple[ModelCard, CardSet]:
    return card_set.models[0], card_set


def code_of(completion: Completion) -> str:
    assert completion.WhichOneof("kind") == "rejection", completion
    assert completion.rejection.stage == Stage.STAGE_GPU_WORKER
    assert completion.rejection.violations[0].detail
    return completion.rejection.code
