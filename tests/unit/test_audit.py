"""What the audit of dependencies says, and when it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.audit import run

SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
ILL = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.0"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.0)"}


def printed(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("osv", "pypi", "status", "said"),
    [
        (printed(SOUND, SOUND), "", 0, "osv knows 0 vulnerabilities of 2 packages"),
        (printed(SOUND, ILL), "", 1, "pillow 1.0: CVE-1, mended in 2.0"),
        (printed(SOUND, UNKNOWN), "", 0, "does not know 1 packages, not audited: torch"),
        ("", printed(ILL), 1, "pypi knows 1 vulnerabilities of 1 packages"),
        # A service that knows nothing has not said that all is well.
        (printed(UNKNOWN, UNKNOWN), printed(SOUND), 0, "pypi knows 0 vulnerabilities of 1 packages"),
        (printed(UNKNOWN), printed(UNKNOWN), 0, "not audited"),
        ("", "Traceback (most recent call last):", 0, "no advisory service could be reached"),
        ("{}", "[]", 0, "not audited"),
    ],
)
def test_findings_fail_and_silence_is_called_silence(osv: str, pypi: str, status: int, said: str) -> None:
    lines: list[str] = []
    assert run({"osv": osv, "pypi": pypi}.__getitem__, lines.append) == status
    assert any(said in line for line in lines), lines
