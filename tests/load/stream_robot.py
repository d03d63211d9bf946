"""A robot that keeps a WebSocket: it acts at its control rate while the next chunk is on its way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from locust import User, constant, tag, task

from robot_client.chunk import ActionChunk
from robot_client.errors import AttemptFailed, Refused
from robot_client.stream_frames import Answer, Frames
from schemas.messages import InferenceRequest
from tests.load.arm import CONTROL_RATE_HZ, Arm
from tests.load.connection import LOST, Connection, Lost
from tests.load.key import key_of

#: The next observation leaves when so many rows of a chunk are played.
_ASK_AFTER_ROWS = 4
#: Robots give up on an answer after so long.
_PATIENCE_S = 10.0
#: A client that is told to wait waits, and sends the same request again so often.
_ATTEMPTS = 3
_PAUSE_S = 1.0

_numbers = itertools.count()


class StreamRobot(User):
    """One arm, over `/v1/stream`. Half of them speak protobuf, the others JSON. Told to locust as requests:

    `WS connect` until the server's welcome; `WS infer` from the frame sent to the answer, its failure by code;
    `WS reconnect and resume` from the drop of a connection to the answer of what was in flight.
    """

    weight = 19
    wait_time = constant(0)

    def on_start(self) -> None:
        self._arm = Arm()
        self._frames = Frames.JSON if next(_numbers) % 2 else Frames.PROTOBUF
        self._key = key_of(self.environment)
        self._connection: Connection | None = None
        self._rows: Sequence[Sequence[float]] = ()
        self._asked = 0

    def on_stop(self) -> None:
        if self._connection is not None:
            with suppress(*LOST):
                self._connection.close()

    @tag("websocket")
    @task
    def ask_and_act(self) -> None:
        """One chunk: the observation goes out, the rest of the last chunk is played until the answer is there."""
        connection = self._connected()
        if connection is None:
            time.sleep(_PAUSE_S)
            return
        request = self._arm.request()
        sent_s = time.monotonic()
        try:
            connection.ask(request)
            self._asked += 1
            drop_every = self.environment.parsed_options.drop_every
            if drop_every and self._asked % drop_every == 0:
                answer, played = self._drop_and_resume(connection, request), 0
            else:
                answer, played = self._play_until_answered(connection, sent_s)
        except (*LOST, Lost) as error:
            self._connection = None
            self._tell("WS infer", sent_s, error)
            return
        chunk = self._read(answer, request, sent_s)
        # A row is for its time after the observation: those that have passed meanwhile are skipped.
        self._rows = chunk.actions.tolist()[played:] if chunk is not None else ()
        if chunk is None:
            self._arm.hold()
            time.sleep(_PAUSE_S)
        self._play(_ASK_AFTER_ROWS)
        if self._arm.begin_if_done():
            self._rows = ()

    def _connected(self) -> Connection | None:
        if self._connection is None:
            began_s = time.monotonic()
            try:
                self._connection = self._open()
                self._tell("WS connect", began_s)
            except (*LOST, Lost) as error:
                self._tell("WS connect", began_s, error)
        return self._connection

    def _open(self) -> Connection:
        if self.host is None:
            raise SystemExit("no host: give --host http://HOST:PORT")
        return Connection(self.host, self._key, self._frames)

    def _play(self, rows: int) -> None:
        for action in self._rows[:rows]:
            self._arm.act(action)
            time.sleep(1 / CONTROL_RATE_HZ)
        self._rows = self._rows[rows:]

    def _play_until_answered(self, connection: Connection, sent_s: float) -> tuple[Answer | None, int]:
        """The answer, and how many rows were played meanwhile; the arm holds when it has none left."""
        ticks = 0
        while time.monotonic() - sent_s < _PATIENCE_S:
            ticks += 1
            answer = connection.answer(sent_s + ticks / CONTROL_RATE_HZ - time.monotonic())
            if answer is not None:
                return answer, ticks - 1
            if self._rows:
                self._arm.act(self._rows[0])
                self._rows = self._rows[1:]
            else:
                self._arm.hold()
        return None, 0

    def _drop_and_resume(self, connection: Connection, request: InferenceRequest) -> Answer | None:
        began_s = time.monotonic()
        connection.drop()
        self._connection = connection = self._open()
        connection.resume(request)
        answer = connection.answer(_PATIENCE_S)
        failed = None if answer is not None else TimeoutError("what was in flight was not answered")
        self._tell("WS reconnect and resume", began_s, failed)
        return answer

    def _read(self, answer: Answer | None, request: InferenceRequest, sent_s: float) -> ActionChunk | None:
        """The chunk; None for a refusal. Told to wait it waits, and asks again under the same id."""
        for attempt in range(_ATTEMPTS):
            if answer is None:
                self._tell("WS infer", sent_s, TimeoutError(f"no answer within {_PATIENCE_S:.0f} s"))
                return None
            try:
                chunk = answer.read()
            except Refused as refusal:
                self._tell("WS infer", sent_s, RuntimeError(refusal.code))
                return None
            except AttemptFailed as failed:
                code = failed.refusal.code if failed.refusal is not None else "failed"
                if failed.retry_after_s is None or attempt == _ATTEMPTS - 1 or self._connection is None:
                    self._tell("WS infer", sent_s, RuntimeError(code))
                    return None
                self._tell(f"WS infer, told to wait: {code}", sent_s)
                time.sleep(failed.retry_after_s)
                sent_s = time.monotonic()
                self._connection.ask(request)
                answer = self._connection.answer(_PATIENCE_S)
                continue
            expired = RuntimeError("expired") if chunk.expired else None
            self._tell("WS infer", sent_s, expired)
            return None if chunk.expired else chunk
        return None

    def _tell(self, name: str, began_s: float, failed: BaseException | None = None) -> None:
        size = self._connection.received_bytes if self._connection is not None and failed is None else 0
        told: dict[str, Any] = {"request_type": "WS", "name": name, "response_length": size, "exception": failed}
        taken_ms = (time.monotonic() - began_s) * 1000
        self.environment.events.request.fire(response_time=taken_ms, context={}, **told)
