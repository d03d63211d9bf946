"""Far more requests than are served, of 50 KB each and by a customer of its own, who asks nothing twice."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil
from PIL import Image

from runtime.stack.roles import vlastream
from schemas.codes import Code
from tests import pictures
from tests.e2e.running_stack import RunningStack
from tests.faults.ledger import Answer, Ledger, Sent

#: Its batch takes ten times as long: a device that many robots can overload from two cores.
INSTRUCTION = "please fault slow now"
FRAME_BYTES = 50_000
TTL_S = 5.0
_ROBOTS = 200


@dataclass
class Tally:
    """What came back. Requests that never reached the log stand here alone, all others in the ledger too."""

    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    #: Answers that nobody may get, whatever the load.
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.answers.total()

    @property
    def served(self) -> int:
        return self.answers[200, ""]


class Flood:
    """Sends `rate_hz` requests a second, open loop, while the `with` block lasts.

    A request that may lie in the log is entered into the ledger, which is held to every promise afterwards.
    """

    def __init__(self, stack: RunningStack, ledger: Ledger, api_key: str, *, rate_hz: float) -> None:
        self.tally = Tally()
        self._url = f"{stack.api}/v1/inference"
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._ledger = ledger
        self._rate_hz = rate_hz
        self._run = uuid.uuid4().hex[:8]
        self._rest = _members_that_stay()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="flood", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:
            self._failure = error

    async def _send_all(self) -> None:
        # As many connections as there are requests under way: a robot waits for nobody else.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        patience = aiohttp.ClientTimeout(total=TTL_S + 10)
        async with aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=patience, trust_env=False
        ) as self._http:
            tasks: set[asyncio.Task[None]] = set()
            started, number = time.monotonic(), 0
            while not self._stop.is_set():
                await asyncio.sleep(max(started + number / self._rate_hz - time.monotonic(), 0))
                task = asyncio.create_task(self._ask(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.gather(*tasks)

    async def _ask(self, number: int) -> None:
        sent = Sent(str(uuid.uuid4()), f"{self._run}-{number % _ROBOTS}", number, TTL_S)
        head = f'{{"request_id":"{sent.request_id}","robot_id":"{sent.robot_id}","step":{number},'
        sent_s = time.time()
        try:
            async with self._http.post(self._url, data=head.encode() + self._rest) as reply:
                content = json.loads(await reply.read())
                self._note(sent, sent_s, reply.status, reply.headers.get("retry-after", ""), content)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.tally.wrong.append(f"no answer: {error!r}")

    def _note(self, sent: Sent, sent_s: float, status: int, retry_after: str, content: dict[str, object]) -> None:
        actions = status == 200
        code = "" if actions else str(content.get("code", ""))
        self.tally.answers[status, code] += 1
        final = actions or bool(content.get("recorded"))
        if not final and status in (429, 503):
            if not (retry_after.isdigit() and int(retry_after) >= 1):
                self.tally.wrong.append(f"{status} {code} with Retry-After {retry_after!r}")
            return
        if not final and code not in (Code.TIMEOUT, Code.EXPIRED):
            self.tally.wrong.append(f"{status} {code}: {content.get('detail')}")
            return
        # Nobody asks again, so the outcome of what was not answered in time is the log's alone to show.
        self._ledger.send(sent if final else Sent(sent.request_id, sent.robot_id, sent.step, TTL_S, unheard=True))
        timings = content.get("timings_ms")
        self._ledger.receive(
            Answer(
                request_id=sent.request_id,
                sent_s=sent_s,
                received_s=time.time(),
                status=status,
                code=code,
                result_id=str(content.get("result_id", "")) if actions else "",
                fresh=actions and not content["replayed"] and not content["expired"],
                age_s=timings.get("total", 0.0) / 1000 if isinstance(timings, dict) else 0.0,
                final=final,
            )
        )


def key_of_another_customer(stack: RunningStack) -> str:
    """An API key of a customer whom nobody knew before."""
    made = subprocess.run(
        vlastream("keys", "create", "--email", f"flood-{uuid.uuid4().hex[:8]}@example.org", "--tier", "pro"),
        env=psutil.Process(stack.pids("api")[0]).environ(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return made.stdout.split()[-1]


def _members_that_stay() -> bytes:
    """A body from its fourth member on."""
    content = {
        "robot_type": "test_arm",
        "instruction": INSTRUCTION,
        "images": [{"camera": "base", "data": base64.b64encode(_frame()).decode()}],
        "state": [0.5, 0.5],
        "options": {"ttl_ms": round(TTL_S * 1000)},
    }
    return json.dumps(content).encode()[1:]


def _frame() -> bytes:
    """A JPEG of about FRAME_BYTES: noise over a scene, as much as that takes."""
    scene = np.asarray(pictures.scene(400, 300), np.int16)
    noise = np.random.default_rng(0).normal(0, 1, scene.shape)
    found = b""
    for strength in range(1, 80):
        noisy = np.clip(scene + noise * strength, 0, 255).astype(np.uint8)
        found = pictures.encoded(Image.fromarray(noisy))
        if len(found) >= FRAME_BYTES:
            return found
    raise AssertionError(f"no picture of {FRAME_BYTES} bytes, the last one has {len(found)}")
