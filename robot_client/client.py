"""`infer(observation) -> ActionChunk`: retries, deadlines and what is never executed, the same on every transport."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

from robot_client.chunk import ActionChunk
from robot_client.errors import AttemptFailed, Late, Refused, RobotClientError, Unreachable
from robot_client.observation import InferenceOptions, Observation, RobotIdentity, encode_request
from robot_client.retry import RetryRule
from robot_client.transport import Transport

T = TypeVar("T")
#: An observation's time to live where `infer` is given none, milliseconds.
DEFAULT_TTL_MS = 2000
GATEWAY_TIMEOUT = 504


class AsyncRobotClient:
    """One robot, in one event loop. Use as `async with`; calls of `infer` may overlap."""

    def __init__(
        self,
        transport: Transport,
        *,
        robot_id: str,
        robot_type: str,
        model: str = "",
        options: InferenceOptions | None = None,
        retry: RetryRule | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._transport = transport
        self._identity = RobotIdentity(
            robot_id=robot_id, robot_type=robot_type, model=model, options=options or InferenceOptions()
        )
        self._retry = retry or RetryRule()
        self._clock = clock
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.close()

    async def infer(
        self, observation: Observation, *, ttl_ms: int = DEFAULT_TTL_MS, request_id: str | None = None
    ) -> ActionChunk:
        """Actions for an observation, fresh when this returns.

        ttl_ms: 1..60000, how long the observation is worth acting on, from now. request_id: a UUID; default: a
        new one. Attempts that came to nothing are repeated under the same id while the deadline allows.

        Raises Refused where the service says no, Late where the deadline passed (a chunk that came after it is
        thrown away), Unreachable where no attempt got through, ValueError for an observation that cannot be encoded.
        """
        started = self._clock()
        deadline = started + ttl_ms / 1000
        request = encode_request(observation, self._identity, request_id=request_id or str(uuid.uuid4()), ttl_ms=ttl_ms)
        for attempt in count(1):
            try:
                chunk = await self._transport.exchange(request, self._retry.attempt_s(deadline - self._clock()))
            except AttemptFailed as failure:
                pause_s = self._retry.pause_s(attempt, failure.retry_after_s, deadline - self._clock())
                if pause_s is None:
                    raise _final(failure, request.request_id, attempt) from failure
                await self._sleep(pause_s)
                continue
            except Refused as refusal:
                if refusal.status == GATEWAY_TIMEOUT:
                    raise Late(f"the service says {refusal.code}", request_id=request.request_id) from refusal
                raise
            now = self._clock()
            if chunk.expired or now >= deadline:
                raise Late("the actions came after their deadline", request_id=request.request_id)
            return replace(chunk, round_trip_ms=(now - started) * 1000, attempts=attempt)
        raise AssertionError("unreachable: count() does not end")


class LoopThread:
    """An event loop in a thread of its own, for RobotClients that share a transport. Use as `with`, around theirs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="robot-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


class RobotClient:
    """The same for a control loop without asyncio: a background thread runs the event loop. Use as `with`.

    thread: one that runs already, to share a transport with other robots; None: one of its own.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        robot_id: str,
        robot_type: str,
        model: str = "",
        options: InferenceOptions | None = None,
        retry: RetryRule | None = None,
        thread: LoopThread | None = None,
    ) -> None:
        self._client = AsyncRobotClient(
            transport, robot_id=robot_id, robot_type=robot_type, model=model, options=options, retry=retry
        )
        self._shared = thread is not None
        self._thread = thread or LoopThread()

    def __enter__(self) -> Self:
        if not self._shared:
            self._thread.__enter__()
        try:
            self._thread.submit(self._client.__aenter__()).result()
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._thread.submit(self._client.__aexit__(kind, error, traceback)).result()
        finally:
            self._end_thread()

    def infer(
        self, observation: Observation, *, ttl_ms: int = DEFAULT_TTL_MS, request_id: str | None = None
    ) -> ActionChunk:
        """As AsyncRobotClient.infer; blocks for at most about ttl_ms."""
        return self._thread.submit(self._client.infer(observation, ttl_ms=ttl_ms, request_id=request_id)).result()

    def submit(self, observation: Observation, *, ttl_ms: int = DEFAULT_TTL_MS) -> Future[ActionChunk]:
        """As `infer`, without waiting: what it returns or raises is the future's. Encoded by the background thread."""
        return self._thread.submit(self._client.infer(observation, ttl_ms=ttl_ms))

    def _end_thread(self) -> None:
        if not self._shared:
            self._thread.__exit__(None, None, None)


def _final(failure: AttemptFailed, request_id: str, attempts: int) -> RobotClientError:
    """What `infer` raises when the last attempt that the deadline allowed has failed."""
    if failure.refusal is not None:
        return failure.refusal
    if failure.timed_out:
        return Late(f"{failure} in attempt {attempts}", request_id=request_id)
    return Unreachable(f"{failure} in attempt {attempts}", request_id=request_id)
