"""A lake in a folder, written by the real decoders and the real store: robots live episodes, people judge them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from runtime.consent import ConsentList
from runtime.kafka import Record
from runtime.metrics import Metrics
from schemas import headers as h
from schemas.messages import (
    ActionMatrix,
    Embedding,
    EpisodeEvent,
    EpisodeKind,
    Feedback,
    FeedbackKind,
    Image,
    ImageEncoding,
    RequestSummary,
    SourceRecord,
)
from schemas.topics import CONSENT, EMBEDDINGS, EPISODES, FEEDBACK, OUTCOMES, REQUESTS, accepted_topic
from sinks.lake_reader import Lake
from sinks.marks import Buffer, Limits, Partition
from sinks.parquet import ParquetStore
from sinks.protection import Protection
from sinks.rows import Row
from sinks.storage import FolderStorage
from sinks.store import Skip
from tests import factories as f
from tests.sink_case import SALT, consents, parquet_decoder

_LIMITS = Limits(rows=1000, size_bytes=10**9, age_s=1)


def actions(horizon: int, start: float = 0.0, dim: int = 7) -> ActionMatrix:
    """Step s has the value start + s / 1000 in every dimension: each step tells which one it is."""
    values = [start + step / 1000 for step in range(horizon) for _ in range(dim)]
    return ActionMatrix(horizon=horizon, dim=dim, values=values)


class LakeFolder:
    """Everything is appended to the topics in the order in which it is called; `write` lets the sink have it."""

    def __init__(self, folder: Path, allowed: ConsentList | None = None, deployment: str = f.DEPLOYMENT) -> None:
        self.allowed = allowed if allowed is not None else consents()
        self.storage = FolderStorage(folder)
        self.lake = Lake(self.storage, LocalFileSystem(), str(folder.resolve()))
        self._accepted = accepted_topic(deployment)
        self._decode = parquet_decoder({self._accepted: deployment}, self.allowed)
        self._store = ParquetStore(self.storage, Metrics(), Protection(self.allowed, SALT))
        self._records: dict[str, list[Record]] = {}
        self._written: dict[str, int] = {}
        #: Every record that was appended, in order.
        self.appended: list[Record] = []

    def ask(
        self,
        *,
        step: int,
        robot: str = "robot-1",
        customer: str = f.CUSTOMER,
        episode: str = "episode-1",
        tier: str = "full",
        chunk: ActionMatrix | None = None,
        executed: ActionMatrix | None = None,
        refused: str = "",
        at_ms: int = f.NOON_MS,
        instruction: str = f.INSTRUCTION,
        cameras: Sequence[str] = ("base",),
        robot_type: str = f.ROBOT_TYPE,
        state: Sequence[float] = (0.5,) * 8,
    ) -> str:
        """A request and its outcome; the row id. Pictures are 64 x 48 and differ by step."""
        row_id, request_id = str(uuid.uuid4()), str(uuid.uuid4())
        offset = len(self.appended)
        images = [
            Image(
                camera=camera,
                encoding=ImageEncoding.IMAGE_ENCODING_JPEG,
                width=64,
                height=48,
                data=f.jpeg(64, 48, step),
            )
            for camera in cameras
        ]
        request = f.inference_request(
            request_id=request_id,
            robot_id=robot,
            robot_type=robot_type,
            episode_id=episode,
            step=step,
            instruction=instruction,
            images=images,
            state=list(state),
            captured_at_ms=at_ms,
            executed=executed,
        )
        headers: dict[str, str | int] = {
            h.REQUEST_ID: request_id,
            h.ROW_ID: row_id,
            h.CUSTOMER_ID: customer,
            h.CONSENT_TIER: tier,
            h.REQUESTED_AT_MS: at_ms,
            h.SOURCE: f"{REQUESTS}/0/{offset}",
        }
        self.append(self._accepted, request.SerializeToString(), at_ms, robot, {**f.accepted_headers(), **headers})
        summary = f.request_summary(
            request_id=request_id,
            robot_id=robot,
            robot_type=robot_type,
            episode_id=episode,
            step=step,
            instruction=instruction if tier != "none" else "",
            state=list(state) if tier != "none" else [],
            images=[RequestSummary.ImageInfo(camera=camera, width=64, height=48, bytes=1000) for camera in cameras],
            customer_id=customer,
            consent_tier=tier,
            captured_at_ms=at_ms,
            requested_at_ms=at_ms,
            source=SourceRecord(topic=REQUESTS, partition=0, offset=offset),
            executed=executed if tier != "none" else None,
        )
        kind = (
            {"rejection": f.rejection(refused, safety=f.safety_report(0.2))}
            if refused
            else {"chunk": f.action_chunk(actions=chunk or actions(8))}
        )
        outcome = f.outcome(row_id=row_id, request=summary, results_offset=offset, decided_at_ms=at_ms + 50, **kind)
        self.append(OUTCOMES, outcome.SerializeToString(), at_ms + 60, robot)
        return row_id

    def end(
        self, *, success: bool | None, robot: str = "robot-1", customer: str = f.CUSTOMER, episode: str = "episode-1"
    ) -> None:
        event = EpisodeEvent(
            event_id=str(uuid.uuid4()),
            kind=EpisodeKind.EPISODE_KIND_END,
            customer_id=customer,
            robot_id=robot,
            robot_type=f.ROBOT_TYPE,
            episode_id=episode,
            success=success,
        )
        self.append(EPISODES, event.SerializeToString(), f.NOON_MS, robot, {h.CUSTOMER_ID: customer})

    def correct(self, row_id: str, corrected: ActionMatrix, customer: str = f.CUSTOMER, robot: str = "robot-1") -> None:
        said = Feedback(
            feedback_id=str(uuid.uuid4()),
            kind=FeedbackKind.FEEDBACK_KIND_ACTION_CORRECTION,
            customer_id=customer,
            robot_id=robot,
            request_id=str(uuid.uuid4()),
            row_id=row_id,
            corrected=corrected,
        )
        self.append(FEEDBACK, said.SerializeToString(), f.NOON_MS, robot)

    def embed(self, row_id: str, *, instruction: Sequence[float], image: Sequence[float] = ()) -> None:
        """The embedder's record on an earlier request."""
        asked = next(r for r in self.appended if r.topic == self._accepted and r.headers[h.ROW_ID] == row_id)
        robot = (asked.key or b"").decode()
        found = Embedding(
            row_id=row_id,
            customer_id=asked.headers[h.CUSTOMER_ID],
            robot_id=robot,
            robot_type=f.ROBOT_TYPE,
            request_id=asked.headers[h.REQUEST_ID],
            episode_id="episode-1",
            consent_tier=asked.headers[h.CONSENT_TIER],
            requested_at_ms=asked.timestamp_ms,
            source=SourceRecord(topic=REQUESTS, partition=0, offset=asked.offset),
            instruction=instruction,
            instruction_model="all-MiniLM-L6-v2",
            image=image,
            image_model="test tower" if image else "",
            brightness=0.5,
            accepted_topic=self._accepted,
            accepted_partition=0,
            accepted_offset=asked.offset,
        )
        self.append(EMBEDDINGS, found.SerializeToString(), asked.timestamp_ms, robot)

    def write(self) -> Lake:
        """Everything that was appended since the last time, as files; the lake."""
        for topic, records in self._records.items():
            if topic in (EMBEDDINGS, CONSENT):
                continue
            partition = Partition(topic, 0)
            start = self._written.get(topic, 0)
            buffer = Buffer[Row](self._store.open(partition), start, _LIMITS)
            for record in records[start:]:
                try:
                    buffer.add(self._decode(record), 0)
                except Skip:
                    buffer.skip(record.offset)
            while (batch := buffer.batch()) is not None:
                self._store.write(partition, batch)
                buffer.written(batch, 0)
            self._written[topic] = len(records)
        return self.lake

    def rows(self, dataset: str) -> Iterator[Row]:
        """What lies in the files."""
        yield from self.lake.dataset(dataset).to_table().to_pylist()

    def append(
        self, topic: str, value: bytes, at_ms: int, key: str, headers: dict[str, str | int] | None = None
    ) -> None:
        records = self._records.setdefault(topic, [])
        record = f.record(
            value, topic=topic, offset=len(records), timestamp_ms=at_ms, headers=headers, key=key.encode()
        )
        records.append(record)
        self.appended.append(record)
