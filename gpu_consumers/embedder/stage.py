"""The embedder's work: take records, embed what the cache does not know in batches, publish, and only then be done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpu_consumers.embedder.cache import Cache, cache_key
from gpu_consumers.embedder.models import ImageModel, TextModel
from gpu_consumers.embedder.records import Item, read_item
from runtime.consent import ConsentList
from runtime.dead_letters import write_dead_letter
from runtime.errors import Poison, Retry, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Delivered, PublisherPort
from schemas.topics import EMBEDDER_GROUP

log = logging.getLogger(__name__)

GROUP = EMBEDDER_GROUP
_PAUSE_S = 0.25


class EmbedStage:
    """A handler for runtime.processor, with one thread that computes. Queries go before requests: somebody waits.

    on_failure: is told of what ends the process.
    """

    def __init__(
        self,
        *,
        text_model: TextModel,
        image_model: ImageModel | None,
        cache: Cache,
        consents: ConsentList,
        publisher: PublisherPort,
        metrics: Metrics,
        batch_size: int,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._text_model = text_model
        self._image_model = image_model
        self._cache = cache
        self._consents = consents
        self._publisher = publisher
        self._metrics = metrics
        self._batch_size = batch_size
        self._on_failure = on_failure
        self._queries: deque[Item] = deque()
        self._requests: deque[Item] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, deadline: Deadline) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(deadline.remaining_s)

    def submit(self, record: Record, done: Callable[[], None]) -> None:
        try:
            item = read_item(record, self._consents, done)
        except Poison as poison:
            self._bury(record, poison, done)
            return
        if item is None:
            self._metrics.embeddings_skipped.labels("consent").inc()
            done()
            return
        with self._changed:
            (self._queries if item.is_query else self._requests).append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.work_once()
        except BaseException as error:
            self._on_failure(error)

    def _wait_for_work(self) -> bool:
        """False once the process stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._queries or self._requests or self._stopping)
            return not self._stopping

    def work_once(self) -> bool:
        """Embed and send one batch of what waits; False where nothing did. Of one thread."""
        with self._changed:
            source = self._queries or self._requests
            batch = [source.popleft() for _ in range(min(len(source), self._batch_size))]
        if batch:
            self._work(batch)
        return bool(batch)

    def _work(self, batch: Sequence[Item]) -> None:
        started = time.perf_counter()
        texts = self._vectors(
            [cache_key(item.customer_id, self._text_model.name, item.text.encode()) for item in batch],
            lambda numbers: self._text_model.embed([batch[n].text for n in numbers]),
        )
        for item, vector in zip(batch, texts, strict=True):
            item.answer.instruction.extend(vector.tolist())
            item.answer.instruction_model = self._text_model.name
        self._embed_images([item for item in batch if item.pixels is not None])
        self._metrics.embedding_duration.observe(time.perf_counter() - started)
        for item in batch:
            self._send(item)

    def _embed_images(self, items: Sequence[Item]) -> None:
        model = self._image_model
        if model is None or not items:
            return
        images = [item.pixels for item in items if item.pixels is not None]
        vectors = self._vectors(
            [cache_key(item.customer_id, model.name, item.encoded) for item in items],
            lambda numbers: model.embed([images[n] for n in numbers]),
        )
        for item, vector in zip(items, vectors, strict=True):
            item.answer.image.extend(vector.tolist())
            item.answer.image_model = model.name

    def _vectors(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """One vector for each key: from the cache, else computed once for each different key."""
        known = {key: vector for key, vector in zip(keys, self._cache.get(keys), strict=True) if vector is not None}
        missing = {key: number for number, key in reversed(list(enumerate(keys))) if key not in known}
        self._metrics.embedding_cache.labels("hit").inc(len(keys) - len(missing))
        self._metrics.embedding_cache.labels("miss").inc(len(missing))
        if missing:
            computed = compute(list(missing.values()))
            new = {key: computed[place] for place, key in enumerate(missing)}
            self._cache.put(new)
            known |= new
        return [known[key] for key in keys]

    def _send(self, item: Item) -> None:
        """Done once the broker has it. What was erased meanwhile is not sent."""
        if not item.is_query and self._consents.is_erased(item.customer_id, item.requested_at_ms):
            item.done()
            return

        def report(where: Delivered | None, error: Exception | None) -> None:
            if error is None:
                item.done()
            elif isinstance(error, (Retry, Unavailable)) and not item.is_query:
                # Still in its place in the low-water mark: sent again, or read again by the next process.
                with self._changed:
                    item.answer.ClearField("instruction")
                    item.answer.ClearField("image")
                    self._requests.append(item)
                    self._changed.notify_all()
            elif item.is_query:
                item.done()
            else:
                self._on_failure(error)

        while True:
            try:
                self._publisher.publish(
                    item.topic,
                    item.answer.SerializeToString(),
                    key=item.key or None,
                    headers=item.headers,
                    partition=item.partition,
                    on_delivery=report,
                )
                return
            except (Retry, Unavailable) as error:
                log.warning("publishing again: %s", error, extra={"action": "retry"})
                if self._pause():
                    return

    def _bury(self, record: Record, poison: Poison, done: Callable[[], None]) -> None:
        while True:
            try:
                write_dead_letter(
                    self._publisher,
                    self._metrics,
                    record,
                    reason=poison.reason,
                    stage="embedder",
                    group=GROUP,
                    error=poison,
                )
                done()
                return
            except (Retry, Unavailable) as error:
                log.warning("writing a dead letter again: %s", error, extra={"action": "retry"})
                if self._pause():
                    return

    def _pause(self) -> bool:
        """Wait a moment; True where the process stops."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopping, timeout=_PAUSE_S)
