"""What the demo writes down while the fleet works, and nothing that it concludes from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

#: Outcome of a request as the robot saw it, where it got actions.
ACTIONS = "actions"


class EpisodeEnd(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    #: The demo ended before the episode did. Counts as not succeeded.
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request: its transport, what came of it, and where the milliseconds went if it brought actions."""

    transport: str
    outcome: str
    round_trip_ms: float
    attempts: int = 1
    batch_size: int = 0
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One episode. `task` is one of examples.tabletop.world.TASKS."""

    robot_id: str
    transport: str
    task: str
    instruction: str
    end: EpisodeEnd
    control_steps: int
    held_steps: int


@dataclass(slots=True)
class RobotStatus:
    """One row of the live table."""

    robot_id: str
    transport: str
    instruction: str = ""
    control_step: int = 0
    last_latency_ms: float = 0.0
    state: str = "starting"
    succeeded: int = 0
    not_succeeded: int = 0
    requests: int = 0
    held_steps: int = 0


@dataclass(slots=True)
class Logbook:
    """All that the fleet did; written by the robots, all of which run in one event loop."""

    robots: list[RobotStatus] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    episodes: list[EpisodeRecord] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def outcomes(self) -> Counter[str]:
        return Counter(record.outcome for record in self.requests)

    def succeeded(self) -> int:
        return sum(episode.end is EpisodeEnd.SUCCESS for episode in self.episodes)
