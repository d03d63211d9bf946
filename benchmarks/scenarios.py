"""What `vlastream bench` measures: scenarios, and the stacks that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.devices import A100_COGACT, H100_COGACT, INSTANT, SimulatedDevice
from benchmarks.own_stack import TABLETOP, Deployment

Transport = Literal["rest", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load on one deployment. Closed loop (`hz` None): each robot asks again as soon as it is answered."""

    name: str
    deployment: Deployment
    robots: int
    hz: float | None
    seconds: float
    transport: Transport = "rest"
    ttl_ms: int = 10_000
    #: What it is judged by; see goals.py.
    goal: Literal["", "overhead", "saturation", "scaling"] = ""

    @property
    def offered(self) -> str:
        rate = "closed loop" if self.hz is None else f"{self.robots * self.hz:g}/s"
        return f"{self.robots} robots, {rate}"


@dataclass(frozen=True, slots=True)
class Group:
    """Scenarios that share one stack."""

    scenarios: tuple[Scenario, ...]

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(dict.fromkeys(scenario.deployment for scenario in self.scenarios))


def instant(cameras: int = 1) -> Deployment:
    return Deployment(f"instant-{cameras}", INSTANT, cameras)


def simulated(device: SimulatedDevice, workers: int = 1) -> Deployment:
    return Deployment(device.name, device, 1, workers)


def overhead(seconds: float) -> Group:
    """What everything besides the model costs, at one robot and at 100 requests a second."""

    def run(name: str, deployment: Deployment, robots: int, hz: float, transport: Transport, goal: bool) -> Scenario:
        return Scenario(
            name=name,
            deployment=deployment,
            robots=robots,
            hz=hz,
            seconds=seconds,
            transport=transport,
            goal="overhead" if goal else "",
        )

    return Group(
        (
            run("one robot, REST", instant(), 1, 10, "rest", True),
            run("one robot, direct", instant(), 1, 10, "direct", True),
            run("100/s, REST", instant(), 20, 5, "rest", True),
            run("100/s, direct", instant(), 20, 5, "direct", True),
            run("one robot, REST, 2 cameras", instant(2), 1, 10, "rest", False),
            run("one robot, REST, 3 cameras", instant(3), 1, 10, "rest", False),
        )
    )


def tabletop(seconds: float) -> Group:
    """The real tabletop policy."""
    deployment = Deployment(TABLETOP)
    return Group(
        (
            Scenario(name="tabletop, 1 robot", deployment=deployment, robots=1, hz=5, seconds=seconds),
            Scenario(name="tabletop, 4 robots", deployment=deployment, robots=4, hz=2, seconds=seconds),
        )
    )


def scale(
    seconds: float, device: SimulatedDevice = H100_COGACT, counts: tuple[int, ...] = (1, 2, 4, 8)
) -> tuple[Group, ...]:
    """Saturation of so many simulated devices, and how batches form under 10, 100 and 1,000 robots."""
    groups = []
    for workers in counts:
        deployment = simulated(device, workers)
        robots = 3 * workers * device.batch_sizes[-1]
        saturated = Scenario(
            name=f"{workers} devices saturated" if workers > 1 else "1 device saturated",
            deployment=deployment,
            robots=robots,
            hz=None,
            seconds=seconds,
            transport="direct",
            goal="saturation" if workers == 1 else "scaling",
        )
        formation = tuple(
            Scenario(
                name=f"batches of {count:,} robots",
                deployment=deployment,
                robots=count,
                # 80 % of what the device can do, whatever the number of robots.
                hz=0.8 * device.best_rate / count,
                seconds=seconds,
                transport="direct",
            )
            for count in (10, 100, 1000)
        )
        groups.append(Group((saturated, *formation) if workers == 1 else (saturated,)))
    return tuple(groups)


def named(name: str, seconds: float) -> tuple[Group, ...]:
    """The groups of a set. Raises KeyError."""
    return {
        "overhead": (overhead(seconds),),
        "tabletop": (tabletop(seconds),),
        "scale": scale(seconds),
        # Slower devices: four of them ask no more of two cores than these can give.
        "scale-a100": scale(seconds, A100_COGACT, (1, 2, 4)),
        "main": (overhead(seconds), tabletop(seconds), *scale(seconds)),
    }[name]


SETS = ("main", "overhead", "tabletop", "scale", "scale-a100")
