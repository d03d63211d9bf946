"""Embedded stacks of the benchmark's own: the deployments and the number of workers that a measurement wants."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import devices
from benchmarks.frames import CAMERAS
from runtime.errors import Fatal
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.roles import ROBOT_PATH, Role, setup_steps, vlastream
from runtime.stack.stack import Stack, is_running
from runtime.stack_file import settings_of

FLEET = "bench"
TABLETOP = "tabletop-pi0"
FOLDER = Path(".vlastream/bench")
_CARDS = Path(__file__).resolve().parent.parent / "deploy" / "cards"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model that the stack serves, and by how many workers. Without a device: the policy of its own card."""

    model: str
    device: devices.SimulatedDevice | None = None
    cameras: int = 1
    workers: int = 1
    #: The model's card, where it is none of ours.
    card: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A stack to measure: what stack.json says, and the settings of a process beside it."""

    document: Mapping[str, Any]
    settings: Settings

    @property
    def api(self) -> str:
        return str(self.document["api"])

    @property
    def api_key(self) -> str:
        return str(self.document["api_key"])

    @property
    def fleet(self) -> str:
        return self.settings.fleets[0]


def target_of(document: Mapping[str, Any]) -> Target:
    settings = Settings(_env_file=None, **settings_of(document))
    return Target(document, settings)


@contextmanager
def own_stack(
    deployments: tuple[Deployment, ...],
    say: Say,
    *,
    gates: int = 1,
    without: Collection[str] = (),
    env: Mapping[str, str] | None = None,
    folder: Path = FOLDER,
) -> Iterator[Target]:
    """A fresh stack with these deployments, stopped and removed at the end. Raises Fatal where it does not start.

    without: roles that do not run ("gate", "gpu", "sink postgres", "sink parquet").
    """
    layout = Layout(folder)
    if is_running(layout.folder):
        raise Fatal(f"another benchmark runs in {folder}: wait for it, or end it with its program")
    shutil.rmtree(layout.folder, ignore_errors=True)
    layout.create()
    cards = write_cards(layout.folder / "cards", deployments)
    roles: list[Role] = []
    for role in ROBOT_PATH:
        if role.name in without:
            continue
        if role.name == "gpu":
            roles += [_gpu_role(deployment) for deployment in deployments]
        else:
            roles.append(Role("gate", role.argv, count=gates) if role.name == "gate" else role)
    stack_env = {"CARDS_DIR": str(cards), "FLEETS": FLEET, "LOG_LEVEL": "WARNING", **(env or {})}
    # Of a tier that sets no limit which a measurement would reach.
    stack = Stack(layout, roles=roles, setup_steps=setup_steps("enterprise"), env=stack_env, say=say)
    try:
        yield target_of(stack.start())
    finally:
        say("stopping the stack")
        stack.stop()
        # Hundreds of MB of log segments, which nobody reads again.
        shutil.rmtree(layout.folder, ignore_errors=True)


def _gpu_role(deployment: Deployment) -> Role:
    return Role(
        f"gpu {deployment.model}",
        vlastream("gpu"),
        count=deployment.workers,
        env={"DEPLOYMENT": deployment.model, "OMP_NUM_THREADS": "1"},
    )


def write_cards(folder: Path, deployments: tuple[Deployment, ...]) -> Path:
    """A folder of cards with these deployments alone."""
    (folder / "models").mkdir(parents=True)
    shutil.copytree(_CARDS / "embodiments", folder / "embodiments")
    for deployment in deployments:
        if deployment.device is None:
            file = deployment.card or _CARDS / "models" / f"{deployment.model}.yaml"
            card = yaml.safe_load(file.read_text())
            card["weights"] = str((file.parent / card["weights"]).resolve())
        else:
            card = devices.card(deployment.device, deployment.model, CAMERAS[: deployment.cameras])
        (folder / "models" / f"{deployment.model}.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return folder
