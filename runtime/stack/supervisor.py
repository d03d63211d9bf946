"""Keeps processes running: starts them, starts them again when they die, and ends them in order."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

from runtime.children import BackOff
from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.stack.component import Component, Say, tail
from runtime.stack.identity import Identity, end_processes
from runtime.stack.layout import Layout, read_json, write_json

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
#: Who lived as long as this starts again with the first delay.
STABLE_AFTER_S = 30.0
_BACK_OFF = BackOff(first_s=FIRST_DELAY_S, longest_s=LONGEST_DELAY_S, stable_after_s=STABLE_AFTER_S)
_TICK_S = 0.05
_PROGRESS_S = 2.0
#: Deaths before it was ever ready, after which a start is given up.
_TRIES = 5


def restart_delay_s(previous_s: float | None, lived_s: float) -> float:
    """Seconds to wait before a process is started again: 0.2, doubling to 5, from anew after 30 s of life."""
    return _BACK_OFF.delay_s(previous_s, lived_s)


@dataclass
class _Watched:
    component: Component
    process: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    restart_at_s: float = 0.0
    delay_s: float | None = None
    deaths: int = 0
    status: int | None = None
    #: Until when it may drain; then it is killed. None: it is kept running.
    leaving: Deadline | None = None


class Supervisor:
    """Belongs to one thread: all its methods are called there, and its children end when that thread does."""

    def __init__(self, layout: Layout, *, say: Say = print, on_change: Callable[[], None] = lambda: None) -> None:
        self._layout = layout
        self._say = say
        self._on_change = on_change
        self._watched: list[_Watched] = []
        self._me = Identity.of(os.getpid())

    def end_orphans(self) -> None:
        """End what an earlier supervisor of this folder started and left running."""
        record = read_json(self._layout.processes_file) or {}
        count = end_processes(map(Identity.from_json, record.get("children", ())), Deadline(10))
        if count:
            self._say(f"ended {count} processes that a supervisor which is gone had left")
        self._record()

    def add(self, component: Component) -> None:
        """Start a prepared component and keep it running from now on."""
        watched = _Watched(component)
        self._watched.append(watched)
        self._start(watched)

    def retire(self, component: Component, deadline: Deadline) -> None:
        """End one by its stop signal and keep it ended, by SIGKILL once the deadline has passed.

        Returns at once, so that all others are watched while it drains; `tick` notices its end.
        """
        watched = next(w for w in self._watched if w.component is component)
        if watched.process is None:
            self._gone(watched)
        else:
            watched.leaving = deadline
            watched.process.send_signal(component.stop_signal)

    def watches(self, component: Component) -> bool:
        """False once a component that was retired or stopped is gone."""
        return any(w.component is component for w in self._watched)

    @property
    def running(self) -> list[tuple[Component, int]]:
        """The components that have a process now, with its id, in the order of `add`."""
        return [(w.component, w.process.pid) for w in self._watched if w.process is not None]

    def tick(self) -> None:
        """Notice deaths, and start again whose time has come."""
        now = time.monotonic()
        for watched in list(self._watched):
            if watched.leaving is not None:
                self._see_off(watched, watched.leaving)
            elif watched.process is not None:
                watched.status = watched.process.poll()
                if watched.status is not None:
                    self._died(watched, now, f"ended with status {watched.status}")
            elif now >= watched.restart_at_s:
                try:
                    watched.component.prepare(self._say)
                    self._start(watched)
                except (Fatal, OSError) as error:
                    self._died(watched, now, str(error))

    def wait_ready(self, components: Sequence[Component], deadline: Deadline, stop: Event) -> None:
        """Tick until all of them serve. Raises Fatal when time is up, `stop` is set, or one keeps dying."""
        began_s = told_s = time.monotonic()
        waiting = list(components)
        while waiting:
            self.tick()
            for component in list(waiting):
                if component.is_ready():
                    waiting.remove(component)
                    told_s = time.monotonic()
                    self._say(f"{component.name} is ready after {told_s - began_s:.1f} s")
            if not waiting:
                return
            self._give_up_if_hopeless(waiting, deadline, stop)
            if time.monotonic() - told_s >= _PROGRESS_S:
                told_s = time.monotonic()
                self._say(f"waiting for {', '.join(c.name for c in waiting)} ({told_s - began_s:.0f} s)")
            stop.wait(_TICK_S)

    def stop(self, stages: Sequence[Sequence[Component]], deadline: Deadline, at_once: Event) -> None:
        """End the stages one after the other, each by its stop signal.

        A stage that does not end within its even share of the time left is killed; so one that hangs leaves time for
        those behind it.
        """
        for left, stage in zip(range(len(stages), 0, -1), stages, strict=True):
            leaving = [w for w in self._watched if w.component in stage]
            self._watched = [w for w in self._watched if w.component not in stage]
            self._end(leaving, Deadline(deadline.remaining_s / left), at_once)
            self._on_change()
        self._record()

    def _end(self, leaving: Sequence[_Watched], deadline: Deadline, at_once: Event) -> None:
        processes = [(w.component, w.process) for w in leaving if w.process is not None]
        retired = [w.process for w in leaving if w.leaving is not None]
        for component, process in processes:
            # A second signal would end at once what drains already.
            if process not in retired:
                process.send_signal(component.stop_signal)
        while any(process.poll() is None for _, process in processes):
            if deadline.passed or at_once.is_set():
                for component, process in processes:
                    if process.poll() is None:
                        log.warning("killing %s, which did not end in time", component.name, extra={"action": "kill"})
                        process.kill()
                        process.wait()
            at_once.wait(_TICK_S)

    def _start(self, watched: _Watched) -> None:
        component = watched.component
        log_file = self._layout.log(component.name)
        watched.process = component.command().spawn(log=log_file, dies_by=component.orphan_signal)
        watched.started_at_s = time.monotonic()
        self._record()
        self._on_change()

    def _see_off(self, watched: _Watched, deadline: Deadline) -> None:
        assert watched.process is not None
        name, status = watched.component.name, watched.process.poll()
        if status is not None:
            self._say(f"{name} has drained and ended" if status == 0 else f"{name} was to end: status {status}")
            self._gone(watched)
        elif deadline.passed:
            log.warning("killing %s, which did not end in time", name, extra={"action": "kill"})
            watched.process.kill()
            watched.process.wait()

    def _gone(self, watched: _Watched) -> None:
        self._watched.remove(watched)
        self._record()
        self._on_change()

    def _died(self, watched: _Watched, now: float, why: str) -> None:
        lived_s = now - watched.started_at_s if watched.process is not None else 0.0
        watched.process = None
        watched.deaths += 1
        watched.delay_s = restart_delay_s(watched.delay_s, lived_s)
        watched.restart_at_s = now + watched.delay_s
        self._say(f"{watched.component.name} {why}: starting it again in {watched.delay_s:.1f} s")
        self._record()
        self._on_change()

    def _give_up_if_hopeless(self, waiting: Sequence[Component], deadline: Deadline, stop: Event) -> None:
        if stop.is_set():
            raise Fatal("stopped while starting")
        dying = [w.component for w in self._watched if w.component in waiting and w.deaths >= _TRIES]
        if dying or deadline.passed:
            what = "keeps dying" if dying else "is not ready in time"
            culprit = (dying or list(waiting))[0]
            raise Fatal(f"{culprit.name} {what}:\n{tail(self._layout.log(culprit.name))}")

    def _record(self) -> None:
        """Keep on disk who was started, so that the next supervisor can end those who outlive this one."""
        children = [Identity.of(pid) for _, pid in self.running]
        write_json(
            self._layout.processes_file,
            {
                "supervisor": self._me.to_json() if self._me else None,
                "children": [child.to_json() for child in children if child is not None],
            },
        )
