"""The import rule: schemas <- runtime <- services, schemas <- robot_client; torch stays in gpu_consumers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("ingest_api", "stream_agents", "gpu_consumers", "sinks")
ALLOWED = {
    "schemas": {"schemas"},
    "runtime": {"schemas", "runtime"},
    "robot_client": {"schemas", "robot_client"},
    **{service: {"schemas", "runtime", service} for service in SERVICES},
}
OURS = {*ALLOWED, "examples", "benchmarks", "tests"}


def imports_of(path: Path) -> set[str]:
    """Top-level packages of ours that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found & OURS


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imports_of(path) <= ALLOWED[package], f"{path.relative_to(ROOT)} imports sideways or upwards"


@pytest.mark.parametrize(
    "modules",
    [
        "ingest_api.server",
        "stream_agents.server",
        "sinks.postgres, sinks.parquet, sinks.books, sinks.migrate",
        "robot_client",
        "runtime.cli",
        "gpu_consumers.policies.deterministic",
    ],
)
def test_whoever_runs_no_policy_never_imports_torch(modules: str) -> None:
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=ROOT)


def test_the_command_line_imports_nothing_but_what_help_needs() -> None:
    script = (
        "import sys, runtime.cli; "
        "heavy = {'confluent_kafka', 'faust', 'fastapi', 'numpy', 'pydantic', 'torch'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_files_stay_small_enough_to_keep_in_the_head() -> None:
    packages = [*ALLOWED, "examples", "tests"]
    generated = ("_pb2.py",)
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            if not path.name.endswith(generated):
                lines = len(path.read_text().splitlines())
                assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: does it hold two things?"
