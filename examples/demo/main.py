"""`vlastream demo`: a fleet of simulated robots does a tabletop task in closed loop through the whole pipeline."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.demo import kept, summary, written
from examples.demo.customers import introduce
from examples.demo.evaluation import CardFigures, read_card
from examples.demo.run import FleetRun, Options
from examples.demo.stack_access import Stack, ensure_up, stop
from runtime.errors import VlastreamError
from sinks.books import Books, read_books

STACK_FILE = Path(".vlastream/stack.json")
FILM_FOLDER = Path(".vlastream/demo")
DATASET_FOLDER = FILM_FOLDER / "dataset"
#: What the sinks get to write what is still on its way when the fleet is done; on a busy machine the faces in the
#: frames take most of it.
BOOKS_WAIT_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if the books balance and the fleet does its task; 1, with the reason, otherwise."""
    named = vars(_parser().parse_args(arguments))
    keep, secure = named.pop("keep"), named.pop("secure")
    console = Console()
    started_here = False
    try:
        card = read_card()
        stack, started_here = ensure_up(STACK_FILE, console.print, secure=secure)
        problems = _run(Options(**named), stack, card, console)
    except (VlastreamError, ConnectionError, FileNotFoundError, ValueError) as error:
        problems = [f"the demo cannot go on: {error}"]
    finally:
        if started_here and not keep:
            stop(console.print)
        elif started_here:
            console.print("the stack stays up: `vlastream ps` shows it, `vlastream down` stops it")
    for problem in problems:
        console.print(f"[red]FAILED[/] {problem}", soft_wrap=True, highlight=False)
    if not problems:
        console.print("[green]PASSED[/] the fleet does its task and the books balance")
    return 1 if problems else 0


def _run(options: Options, stack: Stack, card: CardFigures, console: Console) -> list[str]:
    """Let the fleet work and show what came of it; returns why the demo failed, empty if it did not."""
    began = datetime.now(UTC)
    customers = introduce(stack, console.print)
    fleet = FleetRun(options, stack, customers, STACK_FILE, console)
    asyncio.run(fleet.run())
    summary.show(console, fleet.logbook, card, fleet.elapsed_s)
    console.print("waiting for the sinks to write what is still on its way")
    books = _books(stack, console)
    try:
        written.show(console, stack)
    except Exception as error:  # the verdict does not depend on this display
        console.print(f"rows and objects cannot be shown: {type(error).__name__}: {error}")
    if (paths := fleet.film.write(FILM_FOLDER)) is not None:
        console.print(f"one episode, {fleet.film.instruction!r}: {paths[0]} and {paths[1]}")
    if books is not None:
        console.print(f"[bold]the books[/]\n{books.explain()}", soft_wrap=True)
    console.print("waiting for the embedder")
    found = kept.wait_for_vectors(stack.database, customers, began)
    kept.show(console, customers, found)
    kept.export(console, stack, DATASET_FOLDER, console.print)
    return [*summary.problems(fleet.logbook, card, books), *kept.problems(customers, found)]


def _books(stack: Stack, console: Console) -> Books | None:
    try:
        return read_books(stack.settings(), BOOKS_WAIT_S)
    except Exception as error:  # whatever it is, the demo has failed and the rest is still worth showing
        console.print(f"the books cannot be read: {type(error).__name__}: {error}")
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlastream demo", description=__doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--robots", type=int, default=8, help="robots in the fleet (%(default)s)")
    add("--direct", type=int, default=2, help="how many of them produce to Kafka themselves (%(default)s)")
    add("--guests", type=int, default=2, help="how many of the others belong to who never consented (%(default)s)")
    add("--robots-only", action="store_true", help="leave out the robots of foreign protocols")
    add("--seconds", type=float, default=60.0, help="no episode is begun after this (%(default)s)")
    add("--episodes", type=int, default=None, help="episodes of each robot (as many as there is time for)")
    add("--speed", type=float, default=1.0, help="times as fast as the robots' own 10 Hz (%(default)s)")
    add("--execute", type=int, default=4, help="actions executed of each chunk (%(default)s)")
    add("--ttl-ms", type=int, default=2000, help="time to live of an observation (%(default)s)")
    add("--seed", type=int, default=2_000_000, help="of the worlds and of the robots' wrong clocks (%(default)s)")
    add("--kill", metavar="ROLE", help="kill -9 one process of this role after a third of the time")
    add("--secure", action="store_true", help="if a stack is started: with TLS and users, as `vlastream up --secure`")
    add("--keep", action="store_true", help="leave the stack up")
    return parser
