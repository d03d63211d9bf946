"""Robots that speak somebody else's protocol: each a process of the clients' own environment, read line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from examples.demo.record import EpisodeEnd, EpisodeRecord, Logbook, RequestRecord, RobotStatus

ROOT = Path(__file__).resolve().parents[2]
#: Made by `make clients`: the client packages want other versions than ours.
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
#: As examples/demo/visitor.py names them.
PROTOCOLS = ("openpi", "vla-eval", "openvla")


def are_installed(python: Path = PYTHON) -> bool:
    return python.is_file()


class Visitor:
    """`visit` holds the fields of examples.demo.visitor.Visit; standard error of its process goes to `log`."""

    def __init__(self, visit: Mapping[str, Any], logbook: Logbook, log: Path, python: Path = PYTHON) -> None:
        self._visit = visit
        self._logbook = logbook
        self._log = log
        self._python = python
        self._begun: Mapping[str, Any] | None = None
        self._status = RobotStatus(str(visit["robot_id"]), str(visit["protocol"]))
        logbook.robots.append(self._status)

    async def work(self) -> None:
        """Until the process ends. Cancelled, it is ended, and an episode that was begun is unfinished."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                str(self._python),
                "-m",
                "examples.demo.visitor",
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(self._visit).encode())
                process.stdin.close()
                async for line in process.stdout:
                    self.take(json.loads(line))
                status = await process.wait()
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                self._unfinished()
        self._status.state = "done" if status == 0 else f"ended with status {status}"
        if status:
            self._logbook.events.append(f"the {self._status.transport} client ended with status {status}: {self._log}")

    def take(self, said: Mapping[str, Any]) -> None:
        """One line of the process."""
        status = self._status
        if (begun := said.get("begin")) is not None:
            self._begun = begun
            status.instruction, status.control_step, status.state = begun["instruction"], 0, "moving"
        if (request := said.get("request")) is not None:
            record = RequestRecord(transport=status.transport, **request)
            self._logbook.requests.append(record)
            status.requests += 1
            status.control_step += 1
            status.last_latency_ms = record.round_trip_ms
        if (ended := said.get("episode")) is not None:
            self._begun = None
            self._record(**{**ended, "end": EpisodeEnd(ended["end"])})

    def _record(self, *, end: EpisodeEnd, held_steps: int, **fields: Any) -> None:
        status = self._status
        self._logbook.episodes.append(
            EpisodeRecord(
                robot_id=status.robot_id, transport=status.transport, end=end, held_steps=held_steps, **fields
            )
        )
        status.held_steps += held_steps
        if end is EpisodeEnd.SUCCESS:
            status.succeeded += 1
        else:
            status.not_succeeded += 1

    def _unfinished(self) -> None:
        if self._begun is not None:
            self._record(end=EpisodeEnd.UNFINISHED, control_steps=0, held_steps=0, **self._begun)
            self._begun = None
