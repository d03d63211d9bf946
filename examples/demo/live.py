"""The fleet while it works: a table in a terminal, a line every two seconds anywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.record import ACTIONS, Logbook

TABLE_PERIOD_S = 0.25
LINE_PERIOD_S = 2.0


async def show(logbook: Logbook, console: Console, elapsed_s: Callable[[], float]) -> None:
    """Runs until it is cancelled."""
    if not console.is_terminal:
        await _lines(logbook, console, elapsed_s)
        return
    with Live(fleet_table(logbook, elapsed_s()), console=console, auto_refresh=False) as live:
        try:
            while True:
                await asyncio.sleep(TABLE_PERIOD_S)
                live.update(fleet_table(logbook, elapsed_s()), refresh=True)
        finally:
            live.update(fleet_table(logbook, elapsed_s()), refresh=True)


async def _lines(logbook: Logbook, console: Console, elapsed_s: Callable[[], float]) -> None:
    shown = 0
    while True:
        for event in logbook.events[shown:]:
            console.print(event)
        shown = len(logbook.events)
        console.print(progress_line(logbook, elapsed_s()), soft_wrap=True)
        await asyncio.sleep(LINE_PERIOD_S)


def progress_line(logbook: Logbook, elapsed_s: float) -> str:
    outcomes = logbook.outcomes()
    held = sum(count for outcome, count in outcomes.items() if outcome != ACTIONS)
    latest = sorted(robot.last_latency_ms for robot in logbook.robots if robot.last_latency_ms)
    latency = f", latency about {latest[len(latest) // 2]:.0f} ms" if latest else ""
    return (
        f"{elapsed_s:5.0f} s  {len(logbook.episodes)} episodes, {logbook.succeeded()} succeeded; "
        f"{outcomes.total()} requests, {held} without actions{latency}"
    )


def fleet_table(logbook: Logbook, elapsed_s: float) -> Table:
    events = "\n".join(logbook.events[-3:])
    table = Table(title=progress_line(logbook, elapsed_s), caption=events or None, expand=False)
    for name in ("robot", "by", "instruction", "state"):
        table.add_column(name, no_wrap=True, min_width=6)
    for name in ("step", "ms", "ok", "not ok", "held"):
        table.add_column(name, justify="right")
    for robot in logbook.robots:
        table.add_row(
            robot.robot_id,
            robot.transport,
            robot.instruction,
            robot.state,
            str(robot.control_step),
            f"{robot.last_latency_ms:.0f}",
            str(robot.succeeded),
            str(robot.not_succeeded),
            str(robot.held_steps),
        )
    return table
