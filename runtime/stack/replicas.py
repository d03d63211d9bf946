"""How many processes of each role run: as many as the stack was made with, until somebody wants another number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice

from runtime.lifecycle import Deadline
from runtime.stack.component import Say
from runtime.stack.layout import Layout, read_json
from runtime.stack.roles import Role, RoleProcess
from runtime.stack.supervisor import Supervisor

#: Seconds that a process has to finish what it began; beyond its own SHUTDOWN_TIMEOUT_S.
_DRAIN_S = 60.0

#: Builds the process of a role under a number that is unique among those of the role.
Build = Callable[[Role, int], RoleProcess]


class Replicas:
    """Of the supervisor's thread. What is wanted is read from the layout's `replicas_file`, at every `follow`."""

    def __init__(self, layout: Layout, roles: Sequence[Role], supervisor: Supervisor, build: Build, say: Say) -> None:
        self._file = layout.replicas_file
        self._roles = roles
        self._supervisor = supervisor
        self._build = build
        self._say = say
        self._wanted = {role.name: role.count for role in roles}
        self._numbered: dict[str, dict[int, RoleProcess]] = {role.name: {} for role in roles}
        self._leaving: list[RoleProcess] = []

    @property
    def wanted(self) -> dict[str, int]:
        """Role -> number of processes, in the order of the flow."""
        return dict(self._wanted)

    @property
    def processes(self) -> list[RoleProcess]:
        """All that run or drain, in the order of the flow."""
        return [process for found in self._numbered.values() for _, process in sorted(found.items())]

    def start(self) -> None:
        """Every role as the stack was made: what an earlier run was scaled to is forgotten."""
        self._file.unlink(missing_ok=True)
        for role in self._roles:
            self._add(role, role.count)

    def follow(self) -> None:
        """Start and retire processes until every role has as many as are wanted."""
        self._forget_who_left()
        asked = read_json(self._file) or {}
        for role in self._roles:
            number = int(asked.get(role.name, self._wanted[role.name]))
            if number != self._wanted[role.name]:
                self._say(f"{role.name}: {number} instead of {self._wanted[role.name]} processes")
                self._scale(role, number)

    def _scale(self, role: Role, number: int) -> None:
        self._wanted[role.name] = number
        staying = [p for _, p in sorted(self._numbered[role.name].items()) if p not in self._leaving]
        # The youngest leave: the first processes' addresses are those that people have noted.
        for process in staying[number:]:
            self._leaving.append(process)
            self._supervisor.retire(process, Deadline(_DRAIN_S))
        self._add(role, number - len(staying))
        self._forget_who_left()

    def _add(self, role: Role, number: int) -> None:
        taken = self._numbered[role.name]
        # One that still drains keeps its number, its folder and its port.
        free = (instance for instance in count() if instance not in taken)
        made = {instance: self._build(role, instance) for instance in list(islice(free, max(number, 0)))}
        taken.update(made)
        for process in made.values():
            process.prepare(self._say)
            self._supervisor.add(process)

    def _forget_who_left(self) -> None:
        gone = [process for process in self._leaving if not self._supervisor.watches(process)]
        self._leaving = [process for process in self._leaving if process not in gone]
        for found in self._numbered.values():
            for instance in [instance for instance, process in found.items() if process in gone]:
                del found[instance]
