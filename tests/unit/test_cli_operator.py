"""The operator's commands say what is missing before they touch anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from runtime.cli import main
from runtime.control_commands import known_customer, set_stop
from runtime.errors import Fatal, Reject
from runtime.settings import Settings
from schemas.ids import customer_id_of_email
from schemas.messages import Control

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


def test_a_customer_may_be_named_by_address_wherever_one_is_named() -> None:
    said: list[str] = []
    id_ = customer_id_of_email("ana@example.org")
    assert known_customer(SETTINGS, " Ana@Example.org", said.append) == id_
    assert said == [f" Ana@Example.org is customer {id_}"]
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.control_commands.wait_for_kafka", lambda *_, **__: None)
        patch.setattr("runtime.control_commands.build_producer", lambda *_: None)
        patch.setattr("runtime.control_commands.Publisher", lambda *_: SimpleNamespace(close=lambda _: None))

        async def published(_: object, control: Control, origin: str) -> SimpleNamespace:
            taken.append(control.target)
            return SimpleNamespace(topic=origin, partition=0, offset=0)

        patch.setattr("runtime.control_commands.publish_control", published)
        for kind, name in (("robot", "ana@example.org/arm-1"), ("fleet", "ana@example.org")):
            set_stop(SETTINGS, kind, name, stopped=True, reason="x", by="ana", warn=said.append)
    assert taken == [f"robot:{id_}/arm-1", f"fleet:{id_}"]


@pytest.mark.parametrize(
    "command", [("get",), ("set", "--tier", "none"), ("history",), ("erase",)], ids=lambda command: command[0]
)
def test_consent_named_by_address_is_that_of_the_customer(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def known(settings: Settings, named: str, warn: object) -> str:
        asked.append(named)
        raise Fatal("as far as this test goes")

    monkeypatch.setattr("runtime.consent_commands.known_customer", known)
    status, output = run("consent", command[0], "ana@example.org", *command[1:])
    assert (status, asked) == (1, ["ana@example.org"])
    assert "as far as" in output
