"""The stage on which faults are played: the embedded stack with a policy that can be made to fail, and its load."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import yaml

from gpu_consumers.pipeline import group_of
from runtime.settings import Settings
from runtime.stack.component import Say
from runtime.stack.layout import Layout, free_port
from runtime.stack.roles import ROBOT_PATH, answers_ready, vlastream
from runtime.stack.stack import Stack
from tests.cards import cards, embodiment, model
from tests.e2e.running_stack import RunningStack
from tests.faults.load import Load
from tests.sink_process import ended

#: Answers as a device would that takes 15 ms and 5 ms a request, and obeys "fault ..." in instructions.
CARD = model(policy_config={"service_time_base_ms": 15, "service_time_per_item_ms": 5, "faults": True})
GROUP = group_of(CARD)
#: The next revision of the same model, which gets no robots until somebody says so; and another model. Nobody serves
#: either of them until a fault starts a worker.
NEXT = CARD.model_copy(update={"deployment": "test-model-b", "traffic": 0.0, "default": False})
OTHER = CARD.model_copy(update={"model": "other-model", "deployment": "other-model-a", "default": False})
CARDS = cards(CARD, NEXT, OTHER)


@contextmanager
def fault_stack(folder: Path, say: Say = print, *, session_timeout_ms: int | None = None) -> Iterator[RunningStack]:
    """Two gates and two GPU workers, so that each has a peer; flushes often, so that the books come soon.

    session_timeout_ms: of the consumers; default: the embedded stack's.
    """
    cards_dir = folder / "cards"
    for kind, found in (
        ("embodiments", {"test_arm": embodiment()}),
        ("models", {c.deployment: c for c in CARDS.models}),
    ):
        (cards_dir / kind).mkdir(parents=True)
        for name, card in found.items():
            content = card.model_dump(mode="json", exclude_none=True)
            (cards_dir / kind / f"{name}.yaml").write_text(yaml.safe_dump(content))
    environment = {
        "CARDS_DIR": str(cards_dir),
        "DEFAULT_CONSENT_TIER": "full",
        # Looking for faces costs the sink more than these devices cost the worker, and is not what is broken here.
        "ANONYMIZATION_LEVEL": "partial",
        "PARQUET_FLUSH_INTERVAL_S": "2",
        "POLICY_TIMEOUT_S": "4",
    }
    if session_timeout_ms is not None:
        environment["KAFKA_SESSION_TIMEOUT_MS"] = str(session_timeout_ms)
    roles = [replace(role, count=2) if role.name == "gpu" else role for role in ROBOT_PATH]
    layout = Layout(folder / "stack")
    with Stack(layout, roles=roles, env=environment, say=say) as stack:
        yield RunningStack(layout, stack)


@dataclass
class Scene:
    """What a fault gets to play with."""

    stack: RunningStack
    load: Load

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    def signal(self, role: str, number: signal.Signals, index: int = 0) -> int:
        """Send a signal to one process of a role or server; its pid."""
        pid = self.stack.pids(role)[index]
        os.kill(pid, number)
        return pid

    def wait_until_back(self, *gone: int, timeout_s: float = 90.0) -> None:
        """Until none of these processes is there and every role is ready."""
        end = time.monotonic() + timeout_s
        while True:
            processes = self.stack.file["processes"]
            alive = {process["pid"] for process in processes}
            # During a restart a process is missing from the file altogether.
            complete = len(processes) == len(self.expected)
            if complete and not alive & set(gone) and all(map(ready, processes)):
                return
            assert time.monotonic() < end, f"not everything is back: {[p['role'] for p in processes if not ready(p)]}"
            time.sleep(0.1)

    @property
    def expected(self) -> list[str]:
        servers = ["kafka", "postgres", "valkey", "s3"]
        return servers + [role.name for role in ROBOT_PATH for _ in range(2 if role.name == "gpu" else role.count)]

    @property
    def environment(self) -> dict[str, str]:
        """What a role of this stack is started with."""
        found: dict[str, str] = psutil.Process(self.stack.pids("gpu")[0]).environ()
        return found

    def command(self, *arguments: str, status: int = 0) -> str:
        """One `vlastream` command to its end, as an operator types it beside the stack; what it printed."""
        operator = {name: self.environment[name] for name in ("STACK_FILE", "CARDS_DIR")}
        ran = subprocess.run(
            vlastream(*arguments), env=os.environ | operator, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == status, f"vlastream {' '.join(arguments)}: {ran.stdout[-2000:]} {ran.stderr[-2000:]}"
        return ran.stdout if status == 0 else ran.stderr

    @contextmanager
    def more_gpu_workers(self, count: int, deployment: str = CARD.deployment) -> Iterator[None]:
        """Further `vlastream gpu` processes, beside those of the stack, ended by SIGTERM."""
        environment = {**self.environment, "DEPLOYMENT": deployment}
        ports = [free_port() for _ in range(count)]
        log = self.stack.log_of(f"more-{deployment}").open("ab")
        workers = [
            subprocess.Popen(
                vlastream("gpu"),
                env={**environment, "METRICS_PORT": str(port), "ROLE_INSTANCE": str(10 + number)},
                stdout=log,
                stderr=log,
            )
            for number, port in enumerate(ports)
        ]
        try:
            end = time.monotonic() + 60
            while not all(map(answers_ready, ports)):
                assert time.monotonic() < end, "the further GPU workers did not become ready"
                time.sleep(0.1)
            yield
        finally:
            for worker in workers:
                worker.terminate()
            statuses = [ended(worker) for worker in workers]
            log.close()
            assert statuses == [0] * count


def resident_bytes(stack: RunningStack) -> dict[str, int]:
    """Memory of each process, children included, by role and number."""
    found: dict[str, int] = {}
    for process in stack.file["processes"]:
        name = f"{process['role']} {sum(key.startswith(process['role']) for key in found)}"
        parent = psutil.Process(process["pid"])
        found[name] = sum(one.memory_info().rss for one in [parent, *parent.children(recursive=True)])
    return found


def ready(process: dict[str, str]) -> bool:
    """Servers are ready while they run; a role tells itself."""
    url = process["metrics"]
    return url is None or answers_ready(int(url.split(":")[2].partition("/")[0]))
