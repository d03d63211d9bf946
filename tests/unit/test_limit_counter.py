"""The counter of limits over a socket: whose silence opens the limits, and whose does not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.windows import minute_of

TIMEOUT_S = 0.5
WINDOW = minute_of(1_700_000_030.0)


class HeldValkey:
    """Says 1 to every script, once it may, and takes greetings. Speaks RESP2."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.scripts = 0
        self.asked, self.may_answer, self.answered = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while command := read_command(lines):
                if command[0].upper() == b"EVALSHA":
                    self.scripts += 1
                    self.asked.set()
                    self.may_answer.wait(20)
                    connection.sendall(b":1\r\n")
                    self.answered.set()
                elif command[0].upper() == b"HELLO":
                    connection.sendall(b"-ERR unknown command\r\n")
                else:
                    connection.sendall(b"+OK\r\n")


def read_command(lines: BinaryIO) -> list[bytes]:
    """Empty at the end."""
    try:
        head = lines.readline()
        return [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:]))] if head else []
    except (OSError, ValueError):
        return []


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldValkey]:
    monkeypatch.setattr("runtime.limit_counter._TIMEOUT_S", TIMEOUT_S)
    server = HeldValkey()
    yield server
    server.close()


def unchecked(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("vla_limits_unchecked_total")


def stall_until_it_has_answered(valkey: HeldValkey) -> None:
    """The caller's loop comes round after longer than an answer may take, and the answer lies there by then."""
    valkey.may_answer.set()
    assert valkey.answered.wait(10)
    time.sleep(2 * TIMEOUT_S)  # the one thing that this is about is that time passes


async def test_limits_stay_closed_where_this_loop_was_late_and_not_valkey(valkey: HeldValkey) -> None:
    metrics = Metrics()
    counter = LimitCounter(valkey.url + "?protocol=2", metrics)
    adding = asyncio.create_task(counter.add("customer:c-1", WINDOW))
    assert await asyncio.to_thread(valkey.asked.wait, 10)
    stall_until_it_has_answered(valkey)
    assert await adding == 1
    assert valkey.scripts == 1, "counted twice"
    assert unchecked(metrics) == 0
    await counter.close()


async def test_a_valkey_that_says_nothing_costs_the_limits_and_no_request(valkey: HeldValkey) -> None:
    metrics = Metrics()
    counter = LimitCounter(valkey.url + "?protocol=2", metrics)
    assert await asyncio.wait_for(counter.add("customer:c-1", WINDOW), 20) is None
    assert await counter.add("customer:c-1", WINDOW) is None
    assert valkey.scripts == 1, "it is left alone for some seconds"
    assert unchecked(metrics) == 2
    await counter.close()
