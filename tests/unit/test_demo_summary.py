"""The demo's figures and its verdict."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from examples.demo import live, summary
from examples.demo.evaluation import CardFigures, read_card
from examples.demo.film import Film, strip_indices
from examples.demo.record import ACTIONS, EpisodeEnd, EpisodeRecord, Logbook, RequestRecord, RobotStatus
from examples.demo.stack_access import Process, Stack, victim_of
from examples.demo.written import look_commands
from runtime.errors import Fatal

CARD = CardFigures(1.0, {"pick": 1.0, "reach": 0.9})
TIMINGS = {"request_gate": 1.0, "queue": 2.0, "inference": 10.0, "results": 1.5, "action_gate": 0.5}


@dataclass(frozen=True)
class SomeBooks:
    balanced: bool = True

    def explain(self) -> str:
        return "requests 3, rows 2"


def episodes(succeeded: int, failed: int = 0, unfinished: int = 0, task: str = "pick") -> list[EpisodeRecord]:
    ends = [EpisodeEnd.SUCCESS] * succeeded + [EpisodeEnd.FAILURE] * failed + [EpisodeEnd.UNFINISHED] * unfinished
    return [
        EpisodeRecord(
            robot_id="arm-1",
            transport="REST",
            task=task,
            instruction="pick up the red block",
            end=end,
            control_steps=9,
            held_steps=0,
        )
        for end in ends
    ]


def request(round_trip_ms: float = 20.0, transport: str = "REST", **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "transport": transport,
        "outcome": ACTIONS,
        "round_trip_ms": round_trip_ms,
        "batch_size": 2,
        "timings_ms": TIMINGS,
        **changes,
    }
    return RequestRecord(**fields)


def test_a_fleet_that_does_its_task_with_balanced_books_passes() -> None:
    assert summary.problems(Logbook(episodes=episodes(9, failed=1)), CARD, SomeBooks()) == []


def test_too_little_success_fails_and_says_how_much() -> None:
    (problem,) = summary.problems(Logbook(episodes=episodes(8, failed=2)), CARD, SomeBooks())
    assert "80.0%" in problem
    assert "90.0%" in problem


def test_an_unfinished_episode_is_no_success() -> None:
    assert summary.problems(Logbook(episodes=episodes(8, unfinished=2)), CARD, SomeBooks())


def test_books_that_do_not_balance_fail_whatever_the_success() -> None:
    (problem,) = summary.problems(Logbook(episodes=episodes(10)), CARD, SomeBooks(balanced=False))
    assert "requests 3, rows 2" in problem


def test_books_that_cannot_be_read_fail() -> None:
    assert summary.problems(Logbook(episodes=episodes(10)), CARD, None) == ["the books could not be read"]


def test_no_episode_at_all_fails() -> None:
    assert summary.problems(Logbook(), CARD, SomeBooks()) == ["no episode was begun"]


def test_a_protocol_over_which_no_robot_got_actions_fails_the_demo() -> None:
    logbook = Logbook(
        robots=[RobotStatus("arm-1", "REST"), RobotStatus("arm-2", "WebSocket"), RobotStatus("arm-3", "WebSocket")],
        requests=[request(), request(30.0), request(transport="WebSocket", outcome="late")],
        episodes=episodes(10),
    )
    (problem,) = summary.problems(logbook, CARD, SomeBooks())
    assert "WebSocket" in problem
    rest, websocket = summary.protocol_rows(logbook)
    assert (rest.robots, rest.episodes, rest.succeeded, rest.requests, rest.p50_ms) == (1, 10, 10, 2, 25.0)
    assert (websocket.robots, websocket.requests, websocket.with_actions, websocket.p50_ms) == (2, 1, 0, None)


def test_tasks_stand_beside_the_cards_figures_also_those_that_nobody_did() -> None:
    rows = summary.task_rows([*episodes(3, failed=1), *episodes(1, task="juggle")], CARD)
    assert [(r.task, r.episodes, r.succeeded, r.card) for r in rows] == [
        ("pick", 4, 3, 1.0),
        ("reach", 0, 0, 0.9),
        ("juggle", 1, 1, None),
    ]


def test_stages_and_the_way_between_add_up_to_the_round_trip() -> None:
    rows = dict(summary.percentile_rows([request(20.0), request(20.0, "Kafka")]))
    p50 = sum(rows[stage][0] for stage in (*summary.STAGES, "way"))
    assert p50 == pytest.approx(20.0)
    assert rows["round trip, REST"][0] == rows["round trip, Kafka"][0] == 20.0


def test_percentiles_leave_out_repeated_requests_and_those_without_actions() -> None:
    usable = [request(float(ms)) for ms in range(1, 101)]
    others = [request(9000.0, attempts=2), request(9000.0, outcome="late")]
    rows = dict(summary.percentile_rows([*usable, *others]))
    assert rows["round trip, REST"] == pytest.approx([50.5, 95.05, 99.01])
    assert summary.percentile_rows(others) == []


@given(st.lists(st.integers(0, 16), max_size=60))
def test_every_request_with_actions_is_in_the_batch_histogram_once(sizes: list[int]) -> None:
    histogram = summary.batch_sizes(request(batch_size=size) for size in sizes)
    assert sum(count for _, count in histogram) == sum(size > 0 for size in sizes)
    assert [size for size, _ in histogram] == sorted({size for size in sizes if size})


def test_the_summary_and_the_table_show_what_was_recorded() -> None:
    logbook = Logbook(
        robots=[RobotStatus("arm-7", "Kafka", instruction="reach the blue block", last_latency_ms=21)],
        requests=[request(), request(outcome="refused: unsafe_action"), request(attempts=2)],
        episodes=episodes(3),
        events=["kill -9 of api"],
    )
    console = Console(file=io.StringIO(), width=140)
    summary.show(console, logbook, CARD, 12.0)
    console.print(live.fleet_table(logbook, 12.0))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for word in ("refused: unsafe_action", "round trip, REST", "arm-7", "reach the blue block", "kill -9 of api"):
        assert word in text


@pytest.mark.parametrize(
    "document",
    [{"success": 0.99, "per_task": {"pick": 1}}, {"success": 0.99, "per_task": {"pick": {"success": 1.0, "n": 5}}}],
)
def test_the_cards_figures_are_read_from_its_evaluation(tmp_path: Path, document: dict[str, object]) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(document))
    assert read_card(path) == CardFigures(0.99, {"pick": 1.0})


@pytest.mark.parametrize("document", [{}, {"success": 99, "per_task": {}}, {"success": 0.9, "per_task": {"pick": {}}}])
def test_an_evaluation_without_figures_is_no_pass(tmp_path: Path, document: dict[str, object]) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="success"):
        read_card(path)


@given(st.integers(1, 500))
def test_a_strip_goes_from_the_first_frame_to_the_last(count: int) -> None:
    chosen = strip_indices(count)
    assert chosen[0] == 0
    assert chosen[-1] == count - 1
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, 6)


def test_a_film_shows_a_successful_episode_of_its_robot_only(tmp_path: Path) -> None:
    film = Film("arm-1")
    assert film.write(tmp_path) is None
    for robot_id, success, length in (("arm-1", False, 9), ("arm-2", True, 9), ("arm-1", True, 4), ("arm-1", True, 3)):
        film.begin(robot_id, f"{robot_id} {length}")
        for shade in range(length):
            film.frame(robot_id, partial(np.full, (64, 80, 3), 25 * shade, np.uint8))
        film.end(robot_id, success=success)
    paths = film.write(tmp_path / "demo")
    assert paths is not None
    assert film.instruction == "arm-1 4"
    with Image.open(paths[0]) as gif, Image.open(paths[1]) as strip:
        assert getattr(gif, "n_frames", 1) == 4
        assert strip.width > 4 * 80


def test_the_role_to_kill_is_found_by_its_name_or_its_beginning() -> None:
    processes = [Process("sink postgres", 1), Process("gate", 2), Process("gate", 3), Process("gpu", 4)]
    assert [victim_of(processes, role).pid for role in ("gate", "gpu", "sink")] == [2, 4, 1]
    with pytest.raises(Fatal, match="gate, gpu, sink postgres"):
        victim_of(processes, "embedder")


def test_settings_of_a_stack_are_what_its_file_says() -> None:
    document = {
        "api": "http://127.0.0.1:1",
        "kafka": "127.0.0.1:2",
        "database": "postgresql://u:p@127.0.0.1:3/vla",
        "redis": "redis://127.0.0.1:4",
        "s3": {"endpoint": "http://127.0.0.1:5", "bucket": "b", "access_key": "a", "secret_key": "s"},
        "api_key": "k",
        "processes": [{"role": "api", "pid": 7, "metrics": "http://127.0.0.1:1/metrics"}],
    }
    stack = Stack(document)
    settings = stack.settings()
    assert settings.kafka_bootstrap_servers == "127.0.0.1:2"
    assert settings.s3_endpoint == "http://127.0.0.1:5"
    assert settings.fleets == ("demo",)
    assert stack.processes == [Process("api", 7)]


def test_the_commands_name_the_database_and_the_newest_object() -> None:
    s3 = {"endpoint": "http://127.0.0.1:5", "bucket": "b", "access_key": "a", "secret_key": "s"}
    commands = look_commands("postgresql://u:p@h/d", s3, "outcomes/x.parquet")
    assert "postgresql://u:p@h/d" in commands[0]
    assert "'b/outcomes/x.parquet'" in commands[1]
    assert len(look_commands("postgresql://u:p@h/d", s3, None)) == len(commands) - 1
