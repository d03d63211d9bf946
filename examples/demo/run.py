"""Puts the fleet together, lets it work, and ends it."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from examples.demo import live
from examples.demo.cameras import Cameras
from examples.demo.customers import Customers
from examples.demo.film import Film
from examples.demo.fleet import Pace, Robot
from examples.demo.record import Logbook, RobotStatus
from examples.demo.stack_access import FLEET, Stack, kill_role
from examples.demo.visitors import PROTOCOLS, Visitor, are_installed
from examples.tabletop.world import CONTROL_RATE_HZ, TASKS, TabletopWorld
from robot_client import AsyncRobotClient, HoldRule, KafkaTransport, RestTransport, Transport, WebSocketTransport
from runtime.errors import Fatal
from schemas.card_files import load_cards

ROBOT_TYPE = "tabletop_arm"
#: After the last episode was begun, what robots get to end theirs, seconds.
GRACE_S = 45.0
#: What foreign clients say on standard error.
VISITORS_LOGS = Path(".vlastream/demo")
#: How wrong a robot's clock may be, milliseconds either way.
LARGEST_SKEW_MS = 45 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the fleet is to do."""

    robots: int
    #: How many of the robots produce to Kafka themselves.
    direct: int
    #: How many of the others belong to a customer who has allowed nothing.
    guests: int
    #: Whether robots of foreign protocols are left out.
    robots_only: bool
    #: No episode is begun after this.
    seconds: float
    #: Episodes of each robot; None: as many as there is time for.
    episodes: int | None
    #: Times as fast as the robots' own control rate.
    speed: float
    #: Actions executed of each chunk.
    execute: int
    ttl_ms: int
    seed: int
    #: Role of which one process is killed by SIGKILL after a third of the time.
    kill: str | None


class FleetRun:
    """One run of the fleet; what it did stands in the logbook and on the film."""

    def __init__(
        self, options: Options, stack: Stack, customers: Customers, stack_file: Path, console: Console
    ) -> None:
        self._options = options
        self._stack = stack
        self._customers = customers
        self._stack_file = stack_file
        self._console = console
        self._hold = _hold_rule(stack)
        self._began_s = 0.0
        self._streams: dict[str, WebSocketTransport] = {}
        self.logbook = Logbook()
        self.film = Film(_name(1))

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    async def run(self) -> None:
        """Raises ConnectionError where a robot cannot reach Kafka, Fatal where nothing could be killed."""
        options = self._options
        async with AsyncExitStack() as opened:
            cameras = opened.enter_context(Cameras())
            robots = [await self._robot(number, cameras, opened) for number in range(1, options.robots + 1)]
            self._began_s = time.monotonic()
            work = [asyncio.create_task(robot.work(self._goes_on, options.episodes)) for robot in robots]
            work += [asyncio.create_task(visitor.work()) for visitor in self._visitors()]
            screen = asyncio.create_task(live.show(self.logbook, self._console, lambda: self.elapsed_s))
            kill = asyncio.create_task(self._kill()) if options.kill else None
            try:
                done, late = await asyncio.wait(work, timeout=options.seconds + GRACE_S)
            finally:
                others = [screen, *work, *([kill] if kill is not None else [])]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        for task in done:
            # A robot that broke is a fault of the demo, not an episode that failed.
            task.result()
        if late:
            self._console.print(f"{len(late)} robots had not ended their episode {GRACE_S:.0f} s after the last began")
        if kill is not None and kill.cancelled():
            raise Fatal("the fleet was done before a process was to be killed: give it more seconds or episodes")
        if kill is not None:
            kill.result()

    def _goes_on(self) -> bool:
        return self.elapsed_s < self._options.seconds

    async def _robot(self, number: int, cameras: Cameras, opened: AsyncExitStack) -> Robot:
        """Robot `number` from 1, connected."""
        options, name = self._options, _name(number)
        transport, protocol = self._transport(number)
        client = AsyncRobotClient(transport, robot_id=name, robot_type=ROBOT_TYPE)
        await opened.enter_async_context(client)
        status = RobotStatus(name, protocol)
        self.logbook.robots.append(status)
        world = TabletopWorld(seed=options.seed + number)
        first_task = number % len(TASKS)
        return Robot(
            status=status,
            client=client,
            world=world,
            look=partial(cameras.look, world),
            tasks=TASKS[first_task:] + TASKS[:first_task],
            hold=self._hold,
            pace=Pace(
                execute=options.execute,
                control_period_s=1 / (CONTROL_RATE_HZ * options.speed),
                ttl_ms=options.ttl_ms,
            ),
            logbook=self.logbook,
            camera=self.film,
            clock_skew_ms=random.Random(f"{options.seed}/{name}").randint(-LARGEST_SKEW_MS, LARGEST_SKEW_MS),
        )

    def _visitors(self) -> list[Visitor]:
        """One robot for each foreign protocol, where its client packages are installed.

        They are the guest's: looking for faces in every frame that is kept would take longer than the demo itself.
        """
        options = self._options
        if options.robots_only:
            return []
        if not are_installed():
            self._console.print(
                "no client of other projects is installed: `make clients` adds a robot for each of them"
            )
            return []
        visitors = []
        for number, protocol in enumerate(PROTOCOLS, start=1):
            visit = {
                "protocol": protocol,
                "api": self._stack.api,
                "api_key": self._customers.guest.api_key,
                "robot_id": f"{protocol}-arm",
                "seed": options.seed + 1000 + number,
                "seconds": options.seconds,
                "episodes": options.episodes,
                "control_period_s": 1 / (CONTROL_RATE_HZ * options.speed),
            }
            visitors.append(Visitor(visit, self.logbook, VISITORS_LOGS / f"{protocol}.log"))
        return visitors

    def _transport(self, number: int) -> tuple[Transport, str]:
        """The last robots produce directly, before them come the guests; every other one with a key streams."""
        options, stack = self._options, self._stack
        with_key = options.robots - options.direct
        if number > with_key:
            return KafkaTransport(
                stack.kafka,
                fleet=FLEET,
                robot_id=_name(number),
                frame_lifetime_ms=options.ttl_ms,
                security=stack.fleet_security(),
            ), "Kafka"
        guest = number > with_key - options.guests
        customer = self._customers.guest if guest else self._customers.owner
        if number % 2:
            return RestTransport(stack.api, customer.api_key), "REST"
        if customer.name not in self._streams:
            # One connection for all robots of a customer.
            self._streams[customer.name] = WebSocketTransport(stack.api, customer.api_key)
        return self._streams[customer.name], "WebSocket"

    async def _kill(self) -> None:
        await asyncio.sleep(self._options.seconds / 3)
        self.logbook.events.append(kill_role(self._stack_file, str(self._options.kill)))


def _name(number: int) -> str:
    return f"arm-{number}"


def _hold_rule(stack: Stack) -> HoldRule:
    folder = stack.settings().cards_dir
    card = load_cards(folder).embodiment(ROBOT_TYPE)
    if card is None:
        raise Fatal(f"there is no embodiment card for {ROBOT_TYPE} in {folder}")
    return HoldRule.of(card)
