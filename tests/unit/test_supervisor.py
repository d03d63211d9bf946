"""The supervisor with small programs in place of servers and roles."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.stack.component import Command, Component
from runtime.stack.identity import Identity, end_processes
from runtime.stack.layout import Layout, port_is_free, read_json, whole_or_absent, write_json
from runtime.stack.supervisor import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    STABLE_AFTER_S,
    Supervisor,
    restart_delay_s,
)

#: Tells that it runs, then waits; on SIGTERM it tells its name and ends.
_POLITE = """
import pathlib, signal, sys
name, ready, farewells = sys.argv[1:]
def leave(*_):
    with open(farewells, "a") as file:
        file.write(name + chr(10))
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
pathlib.Path(ready).touch()
while True:
    signal.pause()
"""
#: Ends a moment after the first SIGTERM, and tells how many it got.
_SLOW = """
import pathlib, signal, sys, time
name, ready, farewells = sys.argv[1:]
count = 0
def leave(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, leave)
pathlib.Path(ready).touch()
while not count:
    signal.pause()
end = time.monotonic() + 0.5
while time.monotonic() < end:
    time.sleep(0.05)
pathlib.Path(farewells).write_text(f"{name} after {count} signals{chr(10)}")
"""
_STUBBORN = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[2]).touch()
while True:
    signal.pause()
"""


class Dummy(Component):
    orphan_signal = signal.SIGKILL

    def __init__(self, layout: Layout, name: str, program: str = _POLITE) -> None:
        self.name = self.role = name
        self._program = program
        self._ready = layout.data(f"{name}.ready")
        self._farewells = layout.data("farewells")

    def command(self) -> Command:
        self._ready.unlink(missing_ok=True)
        return Command([sys.executable, "-c", self._program, self.name, str(self._ready), str(self._farewells)])

    def is_ready(self) -> bool:
        return self._ready.exists()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.create()
    return layout


@pytest.fixture
def supervisor(layout: Layout) -> Iterator[Supervisor]:
    supervisor = Supervisor(layout)
    yield supervisor
    supervisor.stop([[component for component, _ in supervisor.running]], Deadline(0), threading.Event())


def _start(supervisor: Supervisor, *components: Component) -> None:
    for component in components:
        supervisor.add(component)
    supervisor.wait_ready(components, Deadline(60), threading.Event())


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = Deadline(60)
    while not condition():
        assert not deadline.passed, f"never came: {what}"
        time.sleep(0.01)


def test_the_first_restart_comes_soon_and_the_delay_doubles_up_to_its_bound() -> None:
    delay_s, delays = None, []
    for _ in range(7):
        delay_s = restart_delay_s(delay_s, lived_s=1.0)
        delays.append(delay_s)
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@given(
    previous_s=st.none() | st.floats(FIRST_DELAY_S, LONGEST_DELAY_S),
    lived_s=st.floats(0, 1e9),
)
def test_a_restart_delay_keeps_its_bounds_and_a_long_life_resets_it(previous_s: float | None, lived_s: float) -> None:
    delay_s = restart_delay_s(previous_s, lived_s)
    assert FIRST_DELAY_S <= delay_s <= LONGEST_DELAY_S
    if lived_s >= STABLE_AFTER_S:
        assert delay_s == FIRST_DELAY_S


def test_a_document_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    write_json(path, {"api": "old"})
    with pytest.raises(TypeError):
        write_json(path, {"api": object()})
    assert read_json(path) == {"api": "old"}
    write_json(path, {"api": "new"})
    assert read_json(path) == {"api": "new"}
    assert [file.name for file in tmp_path.iterdir()] == ["stack.json"]
    assert path.stat().st_mode & 0o077 == 0, "it holds passwords"


def test_a_damaged_document_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"api":')
    with pytest.raises(Fatal, match=r"stack\.json is damaged"):
        read_json(tmp_path / "stack.json")


def test_a_folder_whose_making_failed_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(FileNotFoundError), whole_or_absent(folder) as unfinished:
        (unfinished / "half").joinpath("no such folder").touch()
    assert not folder.exists()
    with whole_or_absent(folder) as unfinished:
        (unfinished / "whole").touch()
    assert [file.name for file in folder.iterdir()] == ["whole"]


def test_a_part_keeps_its_port_and_its_secret(layout: Layout) -> None:
    again = Layout(layout.folder)
    assert layout.port("kafka") == again.port("kafka") != layout.port("s3")
    assert layout.secret("postgres") == again.secret("postgres") != layout.secret("valkey")


def test_a_part_gets_another_port_when_its_own_is_taken(layout: Layout) -> None:
    import socket

    port = layout.port("kafka")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not port_is_free(port)
        assert layout.port("kafka") != port


def test_a_dead_process_is_started_again(supervisor: Supervisor, layout: Layout) -> None:
    dummy = Dummy(layout, "gate")
    _start(supervisor, dummy)
    (_, pid), *_ = supervisor.running
    psutil.Process(pid).kill()

    def running_after_a_tick() -> bool:
        supervisor.tick()
        return supervisor.running != []

    _until(lambda: not running_after_a_tick(), "the death is noticed")
    _until(running_after_a_tick, "it is started again")
    assert supervisor.running[0][1] != pid
    recorded = read_json(layout.processes_file)["children"]
    assert [child["pid"] for child in recorded] == [supervisor.running[0][1]]


def test_a_process_that_keeps_dying_is_reported_with_the_end_of_its_log(supervisor: Supervisor, layout: Layout) -> None:
    supervisor.add(dummy := Dummy(layout, "gpu", "raise SystemExit('no weights found')"))
    with pytest.raises(Fatal, match=r"gpu keeps dying:(.|\n)*no weights found"):
        supervisor.wait_ready([dummy], Deadline(60), threading.Event())


def test_stages_end_one_after_the_other_and_the_stubborn_are_killed(supervisor: Supervisor, layout: Layout) -> None:
    api, gate, sink = Dummy(layout, "api"), Dummy(layout, "gate", _STUBBORN), Dummy(layout, "sink")
    _start(supervisor, sink, gate, api)
    pids = [pid for _, pid in supervisor.running]
    supervisor.stop([[api], [gate], [sink]], Deadline(15), threading.Event())
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert layout.data("farewells").read_text().split() == ["api", "sink"]
    assert supervisor.running == []


def test_a_second_signal_does_not_wait_for_the_stubborn(supervisor: Supervisor, layout: Layout) -> None:
    stubborn = Dummy(layout, "gate", _STUBBORN)
    _start(supervisor, stubborn)
    (_, pid), *_ = supervisor.running
    at_once = threading.Event()
    at_once.set()
    supervisor.stop([[stubborn]], Deadline(3600), at_once)
    assert not psutil.pid_exists(pid)


_SUPERVISING = """
import sys, threading
from pathlib import Path
from runtime.lifecycle import Deadline
from runtime.stack.layout import Layout
from runtime.stack.supervisor import Supervisor
from tests.unit.test_supervisor import Dummy
layout = Layout(Path(sys.argv[1]))
supervisor = Supervisor(layout, say=lambda line: None)
dummies = [Dummy(layout, "api"), Dummy(layout, "gate")]
for dummy in dummies:
    supervisor.add(dummy)
supervisor.wait_ready(dummies, Deadline(60), threading.Event())
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends them")
def test_no_child_outlives_a_killed_supervisor(layout: Layout) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_SUPERVISING), str(layout.folder)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            children = [Identity.from_json(child) for child in read_json(layout.processes_file)["children"]]
            assert len(children) == 2
            assert all(child.process() for child in children)
        finally:
            process.kill()
    _until(lambda: not any(child.process() for child in children), "the children end")


def test_the_next_supervisor_ends_what_was_left_and_nothing_else(supervisor: Supervisor, layout: Layout) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as orphan,
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as stranger,
    ):
        try:
            left, other = Identity.of(orphan.pid), Identity.of(stranger.pid)
            assert left is not None
            assert other is not None
            # The stranger has a process id that a child had before it.
            earlier = Identity(other.pid, other.create_time - 3600)
            record = {"supervisor": None, "children": [left.to_json(), earlier.to_json()]}
            layout.processes_file.write_text(json.dumps(record))
            supervisor.end_orphans()
            assert orphan.poll() is not None or left.process() is None
            assert other.process() is not None
            assert end_processes([other], Deadline(30)) == 1
        finally:
            orphan.kill()
            stranger.kill()


def test_who_is_retired_drains_and_stays_away_and_who_does_not_end_is_killed(
    layout: Layout, supervisor: Supervisor
) -> None:
    polite, stubborn, staying = Dummy(layout, "polite"), Dummy(layout, "stubborn", _STUBBORN), Dummy(layout, "staying")
    _start(supervisor, polite, stubborn, staying)
    before = dict(supervisor.running)
    supervisor.retire(polite, Deadline(60))
    supervisor.retire(stubborn, Deadline(0))

    def both_are_gone() -> bool:
        supervisor.tick()
        return not supervisor.watches(polite) and not supervisor.watches(stubborn)

    _until(both_are_gone, "both are gone")
    assert layout.data("farewells").read_text() == "polite\n"
    assert dict(supervisor.running) == {staying: before[staying]}
    assert not any(psutil.pid_exists(before[gone]) for gone in (polite, stubborn))
    assert [child["pid"] for child in read_json(layout.processes_file)["children"]] == [before[staying]]


def test_a_stop_does_not_signal_a_second_time_who_drains_already(layout: Layout, supervisor: Supervisor) -> None:
    slow = Dummy(layout, "slow", _SLOW)
    _start(supervisor, slow)
    supervisor.retire(slow, Deadline(60))
    supervisor.stop([[slow]], Deadline(60), threading.Event())
    assert layout.data("farewells").read_text() == "slow after 1 signals\n"
