"""Asks the advisory services about every pinned requirement: `make audit`.

Ends with 1 where a version has a known vulnerability. Where no service can be reached, or one that answers knows none
of the packages (a mirror of an index does not), it says that nothing was audited and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements" / "all.txt"
#: In the order in which they are asked; the first that knows our packages has the word.
SERVICES = ("osv", "pypi")
_ANSWER_S = "5"
_PATIENCE_S = 240

Ask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Audit:
    """audited: packages that the service knows. unknown: those that it does not. findings: one line each."""

    audited: int
    unknown: tuple[str, ...]
    findings: tuple[str, ...]


def read(document: str) -> Audit | None:
    """What pip-audit's JSON says; None for what is none: it ended without one."""
    try:
        packages: list[dict[str, Any]] = json.loads(document)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    unknown = tuple(package["name"] for package in packages if "skip_reason" in package)
    findings = tuple(
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", [])
    )
    return Audit(len(packages) - len(unknown), unknown, findings)


def run(ask: Ask, say: Callable[[str], None], services: Sequence[str] = SERVICES) -> int:
    """The exit status."""
    for service in services:
        audit = read(ask(service))
        if audit is None or audit.audited == 0:
            continue
        for line in audit.findings:
            say(line)
        if audit.unknown:
            say(f"{service} does not know {len(audit.unknown)} packages, not audited: {', '.join(audit.unknown)}")
        say(f"{service} knows {len(audit.findings)} vulnerabilities of {audit.audited} packages")
        return 1 if audit.findings else 0
    say("no advisory service could be reached, or none knows these packages; not audited")
    return 0


def ask_service(service: str) -> str:
    """What pip-audit prints of one service; empty where it does not get that far."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(REQUIREMENTS), "--require-hashes"]
    command += ["--disable-pip", "--vulnerability-service", service, "--timeout", _ANSWER_S]
    command += ["--format", "json", "--progress-spinner", "off"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S).stdout
    except subprocess.TimeoutExpired:
        return ""


if __name__ == "__main__":
    sys.exit(run(ask_service, print))
