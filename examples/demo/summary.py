"""What the run comes to: pure figures, the verdict, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.demo.evaluation import CardFigures
from examples.demo.record import ACTIONS, EpisodeEnd, EpisodeRecord, Logbook, RequestRecord

#: Share of the card's own success that the fleet must reach.
SUCCESS_SHARE = 0.9
#: Least width of a table, characters: titles keep to one line.
TABLE_WIDTH = 72
PERCENTILES = (50, 95, 99)
#: Stages of a reply in the order of the flow; "way" is what remains: network, Kafka hops and client.
STAGES = ("request_gate", "queue", "inference", "results", "action_gate")


class BooksLike(Protocol):
    """sinks.books.Books, as far as the demo reads it."""

    @property
    def balanced(self) -> bool: ...
    def explain(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """Success of one task in the fleet beside the card's; None where the card does not say."""

    task: str
    episodes: int
    succeeded: int
    card: float | None

    @property
    def success(self) -> float:
        return self.succeeded / self.episodes if self.episodes else 0.0


def task_rows(episodes: Iterable[EpisodeRecord], card: CardFigures) -> list[TaskRow]:
    """One row a task, in the card's order, tasks that the card does not name behind; tasks without an episode too."""
    done: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    for episode in episodes:
        done[episode.task] += 1
        succeeded[episode.task] += episode.end is EpisodeEnd.SUCCESS
    names = [*card.per_task, *sorted(set(done) - set(card.per_task))]
    return [
        TaskRow(task=name, episodes=done[name], succeeded=succeeded[name], card=card.per_task.get(name))
        for name in names
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRow:
    """What the robots of one protocol did. p50_ms: of their requests with actions; None: none had any."""

    protocol: str
    robots: int
    episodes: int
    succeeded: int
    requests: int
    with_actions: int
    p50_ms: float | None


def protocol_rows(logbook: Logbook) -> list[ProtocolRow]:
    """One row a protocol, in the order in which their robots came."""
    rows = []
    for protocol in dict.fromkeys(robot.transport for robot in logbook.robots):
        episodes = [e for e in logbook.episodes if e.transport == protocol]
        requests = [r for r in logbook.requests if r.transport == protocol]
        served = [r.round_trip_ms for r in requests if r.outcome == ACTIONS]
        rows.append(
            ProtocolRow(
                protocol=protocol,
                robots=sum(robot.transport == protocol for robot in logbook.robots),
                episodes=len(episodes),
                succeeded=sum(e.end is EpisodeEnd.SUCCESS for e in episodes),
                requests=len(requests),
                with_actions=len(served),
                p50_ms=float(np.median(served)) if served else None,
            )
        )
    return rows


def percentile_rows(requests: Sequence[RequestRecord]) -> list[tuple[str, list[float]]]:
    """(stage, p50, p95, p99 in ms) of the requests that brought actions at the first attempt, replies' own timings.

    A repeated request is left out: its round trip holds pauses that are no stage of the pipeline.
    """
    usable = [r for r in requests if r.outcome == ACTIONS and r.attempts == 1 and set(STAGES) <= set(r.timings_ms)]
    if not usable:
        return []
    rows = [(stage, [r.timings_ms[stage] for r in usable]) for stage in STAGES]
    rows.append(("way", [r.round_trip_ms - sum(r.timings_ms[s] for s in STAGES) for r in usable]))
    rows.extend(
        (f"round trip, {transport}", [r.round_trip_ms for r in usable if r.transport == transport])
        for transport in sorted({r.transport for r in usable})
    )
    return [(name, [float(p) for p in np.percentile(values, PERCENTILES)]) for name, values in rows]


def batch_sizes(requests: Iterable[RequestRecord]) -> list[tuple[int, int]]:
    """(batch size, requests that rode in one), ascending."""
    return sorted(Counter(r.batch_size for r in requests if r.outcome == ACTIONS and r.batch_size).items())


def problems(logbook: Logbook, card: CardFigures, books: BooksLike | None) -> list[str]:
    """Why the demo failed; empty if it did not. `books` None: they could not be read."""
    found = [
        f"no robot got actions over {row.protocol} in {row.requests} requests"
        for row in protocol_rows(logbook)
        if row.requests and not row.with_actions
    ]
    episodes = logbook.episodes
    if books is None:
        found.append("the books could not be read")
    elif not books.balanced:
        # The last line of the explanation is its verdict; the table above it is shown anyway.
        found.append(books.explain().splitlines()[-1])
    if not episodes:
        return [*found, "no episode was begun"]
    success = sum(e.end is EpisodeEnd.SUCCESS for e in episodes) / len(episodes)
    floor = SUCCESS_SHARE * card.success
    if success < floor:
        found.append(
            f"fleet success {success:.1%} of {len(episodes)} episodes is below {floor:.1%} "
            f"({SUCCESS_SHARE:.0%} of the card's {card.success:.1%})"
        )
    return found


def show(console: Console, logbook: Logbook, card: CardFigures, elapsed_s: float) -> None:
    """The fleet's side of the summary: success, requests, batches, latency."""
    console.print(_success_table(logbook.episodes, card))
    outcomes = Table(
        title=f"{len(logbook.requests)} requests in {elapsed_s:.0f} s, as the robots saw them end",
        min_width=TABLE_WIDTH,
    )
    outcomes.add_column("outcome")
    outcomes.add_column("requests", justify="right")
    for outcome, count in logbook.outcomes().most_common():
        outcomes.add_row(outcome, str(count))
    repeated = sum(r.attempts > 1 for r in logbook.requests)
    if repeated:
        outcomes.add_row("of these repeated under the same id", str(repeated), style="dim")
    console.print(outcomes)
    console.print(_protocol_table(protocol_rows(logbook)))
    if sizes := batch_sizes(logbook.requests):
        console.print(_batch_table(sizes))
    if rows := percentile_rows(logbook.requests):
        console.print(_latency_table(rows))


def _protocol_table(rows: list[ProtocolRow]) -> Table:
    table = Table(title="what each protocol's robots did", min_width=TABLE_WIDTH)
    table.add_column("protocol")
    for name in ("robots", "episodes", "succeeded", "requests", "with actions", "p50 ms"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (row.robots, row.episodes, row.succeeded, row.requests, row.with_actions)
        table.add_row(row.protocol, *map(str, figures), f"{row.p50_ms:.0f}" if row.p50_ms is not None else "")
    return table


def _latency_table(rows: list[tuple[str, list[float]]]) -> Table:
    latency = Table(title="latency of requests with actions, ms", min_width=TABLE_WIDTH)
    latency.add_column("stage")
    for percentile in PERCENTILES:
        latency.add_column(f"p{percentile}", justify="right")
    for stage, values in rows:
        latency.add_row(stage, *(f"{value:.1f}" for value in values))
    return latency


def _success_table(episodes: Sequence[EpisodeRecord], card: CardFigures) -> Table:
    unfinished = sum(e.end is EpisodeEnd.UNFINISHED for e in episodes)
    held = sum(e.held_steps for e in episodes)
    table = Table(
        title="success by task", min_width=TABLE_WIDTH, caption=f"{unfinished} unfinished, {held} control steps held"
    )
    table.add_column("task")
    for name in ("episodes", "succeeded", "fleet", "policy card"):
        table.add_column(name, justify="right")
    for row in task_rows(episodes, card):
        stated = f"{row.card:.1%}" if row.card is not None else ""
        fleet = f"{row.success:.1%}" if row.episodes else ""
        table.add_row(row.task, str(row.episodes), str(row.succeeded), fleet, stated)
    succeeded = sum(e.end is EpisodeEnd.SUCCESS for e in episodes)
    share = f"{succeeded / len(episodes):.1%}" if episodes else ""
    table.add_section()
    table.add_row("all", str(len(episodes)), str(succeeded), share, f"{card.success:.1%}")
    return table


def _batch_table(sizes: list[tuple[int, int]]) -> Table:
    table = Table(title="requests by the size of the batch that they rode in", show_header=False, min_width=TABLE_WIDTH)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(min_width=32)
    most = max(count for _, count in sizes)
    for size, count in sizes:
        table.add_row(str(size), str(count), "█" * max(1, round(30 * count / most)))
    return table
