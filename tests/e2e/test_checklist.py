"""docs/checklist.md is true: its commands run in order, in one shell, against a running stack."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.running_stack import RunningStack

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "checklist.md"
_STEP = "@@ step"


def steps() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_page_leaves_no_line_of_the_checklist_open() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "- [ ]" not in text
    assert text.count("- [x]") >= 30


@pytest.mark.timeout(900)
def test_every_command_of_the_checklist_runs(stack: RunningStack) -> None:
    script = "\n".join(
        ["set -eu -o pipefail", *(f"echo '{_STEP} {number}'\n{step}" for number, step in enumerate(steps(), 1))]
    )
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**stack.environment, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    last = run.stdout.rsplit(_STEP, 1)[-1]
    assert run.returncode == 0, f"step{last}\n\nwhich is\n\n{steps()[int(last.split()[0]) - 1]}"
    assert last.split()[0] == str(len(steps()))
