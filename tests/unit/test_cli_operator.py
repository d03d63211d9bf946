"""The operator's commands say what is missing before they touch anything."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from runtime.cli import main
from runtime.control_commands import set_stop
from runtime.errors import Fatal, Reject
from runtime.settings import Settings

#: Nothing listens there: whoever asks Kafka fails in a way that the tests would see.
SETTINGS = Settings(_env_file=None, fleets=("north",), kafka_bootstrap_servers="127.0.0.1:9")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("stop", "robot", "north/arm-1"),
        ("stop", "robot", "--reason", "x"),
        ("stop", "all", "north", "--reason", "x"),
        ("resume", "all"),
        ("stop", "everything", "--reason", "x"),
        ("dlq", "show"),
        ("dlq", "list", "--limit", "0"),
        ("dlq", "replay", "--limit", "-1"),
        ("backup", "verify", "no-such-folder"),
        ("backup", "restore", "no-such-folder"),
        ("rebuild", "--keys-from", "no-such-folder"),
    ],
)
def test_an_order_that_is_not_whole_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    status, output = run(*arguments)
    assert status == 2
    assert "Usage:" in output


def test_a_kafka_that_is_away_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.fleets.registry._TIMEOUT_S", 0.2)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    status, output = run("fleets", "list")
    assert status == 1
    assert output.startswith("Error: Kafka does not answer")
    assert "vlastream config show" in output, "what to do next"


@pytest.mark.parametrize("command", ["stop", "resume", "stops", "dlq"])
def test_every_command_explains_itself(command: str) -> None:
    assert run(command, "--help")[0] == 0
    assert command in run("--help")[1]


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("robot", "north", "CUSTOMER/ROBOT"),
        ("robot", "north/", "CUSTOMER/ROBOT"),
        ("robot", "north/arm 1", "robot id"),
        ("fleet", "north/arm-1", "no name"),
        ("model", "tabletop-pi", "did you mean tabletop-pi0?"),
        ("model", "zzz", "there are:"),
    ],
)
def test_a_target_that_cannot_be_is_refused_with_what_to_do(kind: str, name: str, sentence: str) -> None:
    with pytest.raises((Fatal, Reject)) as caught:
        set_stop(SETTINGS, kind, name, stopped=True, reason="x", by="ana", warn=lambda text: None)
    assert sentence in str(caught.value)


_ID = "0f5d0f0e-8f0b-4c6e-9d5e-2b7a1c3d4e5f"


@pytest.mark.parametrize(("customer", "warned"), [("north", False), (_ID, False), ("nroth", True)])
def test_a_customer_that_nobody_knows_is_pointed_out(
    customer: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def away(settings: Settings, timeout_s: float) -> None:
        raise Fatal("as far as this test goes")

    monkeypatch.setattr("runtime.control_commands.wait_for_kafka", away)
    with pytest.raises(Fatal, match="as far"):
        set_stop(SETTINGS, "fleet", customer, stopped=True, reason="x", by=None, warn=said.append)
    assert bool(said) is warned
