"""`vlastream demo`: a fleet of simulated robots does a tabletop task in closed loop through the whole pipeline."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.demo import live, summary, written
from examples.demo.evaluation import CardFigures, read_card
from examples.demo.film import Film
from examples.demo.fleet import Pace, Robot
from examples.demo.record import Logbook, RobotStatus
from examples.demo.stack_access import FLEET, Stack, ensure_up, kill_role, stop
from examples.demo.worlds import MODEL, ROBOT_TYPE, TabletopEpisodes, task_of
from robot_client import AsyncRobotClient, HoldRule, RestTransport, Transport
from robot_client.kafka import KafkaTransport
from runtime.errors import VlastreamError
from runtime.settings import Settings
from schemas.card_files import load_cards
from sinks.books import Books, read_books

STACK_FILE = Path(".vlastream/stack.json")
FILM_FOLDER = Path(".vlastream/demo")
#: After the last episode was begun, what robots get to end theirs, seconds.
GRACE_S = 45.0
#: How wrong a robot's clock may be, milliseconds either way.
LARGEST_SKEW_MS = 45 * 60_000
BOOKS_WAIT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if the books balance and the fleet does its task; 1 with the reason otherwise."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        card = read_card()
    except (FileNotFoundError, ValueError) as error:
        console.print(f"the policy's figures cannot be read: {error}")
        return 1
    started_here = False
    try:
        stack, started_here = ensure_up(STACK_FILE, console.print)
        return _run(options, stack, card, console)
    except (VlastreamError, ConnectionError) as error:
        console.print(f"[red]the demo cannot go on:[/] {error}", soft_wrap=True)
        return 1
    finally:
        if started_here and not options.keep:
            stop(console.print)
        elif started_here:
            console.print("the stack stays up: `vlastream ps` shows it, `vlastream down` stops it")


def _run(options: argparse.Namespace, stack: Stack, card: CardFigures, console: Console) -> int:
    started = time.monotonic()
    logbook, film = Logbook(), Film("arm-1")
    asyncio.run(_fleet(options, stack, logbook, film, console))
    elapsed_s = time.monotonic() - started
    summary.show(console, logbook, card, elapsed_s)
    console.print("waiting for the sinks to write what is still on its way")
    books = _books(stack, console)
    try:
        written.show(console, stack)
    except Exception as error:  # the verdict below does not depend on this display
        console.print(f"rows and objects cannot be shown: {type(error).__name__}: {error}")
    if (paths := film.write(FILM_FOLDER)) is not None:
        console.print(f"one episode, {film.instruction!r}: {paths[0]} and {paths[1]}")
    if books is not None:
        console.print(f"the books: {books.explain()}", soft_wrap=True)
    problems = summary.problems(logbook.episodes, card, books)
    for problem in problems:
        console.print(f"[red]FAILED[/] {problem}", soft_wrap=True)
    if not problems:
        console.print("[green]PASSED[/] the fleet does its task and the books balance")
    return 1 if problems else 0


def _books(stack: Stack, console: Console) -> Books | None:
    try:
        return read_books(stack.settings(), BOOKS_WAIT_S)
    except Exception as error:  # whatever it is, the run has failed and the summary is still worth having
        console.print(f"the books cannot be read: {type(error).__name__}: {error}")
        return None


async def _fleet(options: argparse.Namespace, stack: Stack, logbook: Logbook, film: Film, console: Console) -> None:
    began = time.monotonic()

    def elapsed_s() -> float:
        return time.monotonic() - began

    hold = _hold_rule(stack.settings())
    async with AsyncExitStack() as open_clients:
        robots = [
            await _robot(number, options, stack, hold, logbook, film, open_clients)
            for number in range(1, options.robots + 1)
        ]
        work = [
            asyncio.create_task(robot.work(lambda: elapsed_s() < options.seconds, options.episodes)) for robot in robots
        ]
        screen = asyncio.create_task(live.show(logbook, console, elapsed_s))
        kill = asyncio.create_task(_kill_midway(options, logbook)) if options.kill else None
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
            console.print(f"{len(late)} robots had not ended their episode after {GRACE_S:.0f} s of grace")
        if kill is not None and not kill.cancelled():
            kill.result()


async def _robot(
    number: int,
    options: argparse.Namespace,
    stack: Stack,
    hold: HoldRule,
    logbook: Logbook,
    film: Film,
    open_clients: AsyncExitStack,
) -> Robot:
    name = f"arm-{number}"
    direct = number > options.robots - options.direct
    transport: Transport
    if direct:
        transport = KafkaTransport(stack.kafka, fleet=FLEET, robot_id=name, frame_lifetime_ms=options.ttl_ms)
    else:
        transport = RestTransport(stack.api, stack.api_key)
    client = AsyncRobotClient(transport, robot_id=name, robot_type=ROBOT_TYPE, model=MODEL)
    await open_clients.enter_async_context(client)
    status = RobotStatus(name, "Kafka" if direct else "REST")
    logbook.robots.append(status)
    chance = random.Random(f"{options.seed}/{name}")
    return Robot(
        status=status,
        client=client,
        world=TabletopEpisodes(seed=options.seed + 10_000 * number, first_task=number - 1),
        task_of=task_of,
        hold=hold,
        pace=Pace(execute=options.execute, control_period_s=0.1 / options.speed, ttl_ms=options.ttl_ms),
        logbook=logbook,
        camera=film,
        clock_skew_ms=chance.randint(-LARGEST_SKEW_MS, LARGEST_SKEW_MS),
    )


async def _kill_midway(options: argparse.Namespace, logbook: Logbook) -> None:
    await asyncio.sleep(options.seconds / 3)
    logbook.events.append(kill_role(STACK_FILE, options.kill))


def _hold_rule(settings: Settings) -> HoldRule:
    card = load_cards(settings.cards_dir).embodiment(ROBOT_TYPE)
    if card is None:
        raise VlastreamError(f"no embodiment card for {ROBOT_TYPE} in {settings.cards_dir}")
    return HoldRule.of(card)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlastream demo", description=__doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--robots", type=int, default=8, help="robots in the fleet (%(default)s)")
    add("--direct", type=int, default=2, help="how many of them produce to Kafka themselves (%(default)s)")
    add("--seconds", type=float, default=60.0, help="no episode is begun after this (%(default)s)")
    add("--episodes", type=int, default=None, help="episodes of each robot (as many as there is time for)")
    add("--speed", type=float, default=1.0, help="times as fast as the robots' 10 Hz (%(default)s)")
    add("--execute", type=int, default=4, help="actions executed of each chunk (%(default)s)")
    add("--ttl-ms", type=int, default=2000, help="time to live of an observation (%(default)s)")
    add("--seed", type=int, default=1_000_000, help="of the worlds and of the robots' wrong clocks (%(default)s)")
    add("--kill", metavar="ROLE", help="kill -9 one process of this role after a third of the time")
    add("--keep", action="store_true", help="leave the stack up")
    return parser
