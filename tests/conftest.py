"""Fixtures for all tests, and the option that runs the stack's tests on a secure one."""

from __future__ import annotations

import pytest
from hypothesis import settings

pytest_plugins = ["tests.embedded", "tests.secure_kafka"]

# How long an example takes is the machine's affair: no test fails for it.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--secure-stack", action="store_true", help="TLS and users for the whole stack of tests/e2e (make test-secure)"
    )
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped counts as a failure")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How often the break-in suite tried, and how often it got in: an attempt whose test did not pass."""
    ran = {
        outcome: sum("/test_break_in_" in report.nodeid for report in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed", "error")
    }
    if tried := sum(ran.values()):
        terminalreporter.write_line(f"break-in: {tried} attempts, {tried - ran['passed']} let in")
