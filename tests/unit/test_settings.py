"""Settings are read in one place, are all in .env.example, and explain themselves when they are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime.errors import Fatal
from runtime.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"
LINE = re.compile(r"^#? ?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)


def test_every_setting_is_in_the_example_and_nothing_else_is() -> None:
    named = {name for name, _ in LINE.findall(EXAMPLE.read_text())}
    assert named == {name.upper() for name in Settings.model_fields}


def test_the_example_holds_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / ".env").write_text(EXAMPLE.read_text().replace("CARDS_DIR=deploy", f"CARDS_DIR={ROOT}/deploy"))
    assert load_settings().model_dump() == Settings(_env_file=None).model_dump()


def test_commands_beside_an_embedded_stack_find_its_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".vlastream").mkdir()
    s3 = {"endpoint": "http://s3", "bucket": "b", "access_key": "a", "secret_key": "s"}
    stack = {"kafka": "kafka:1", "database": "postgresql://db", "redis": "redis://r", "s3": s3, "fleets": "north"}
    (tmp_path / ".vlastream" / "stack.json").write_text(json.dumps(stack))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "named:1")
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "named:1", "the environment goes before the stack"
    assert (settings.fleets, settings.s3_endpoint) == (("north",), "http://s3")


def test_a_wrong_setting_is_named_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("MIN_SAFETY_SCORE", "7")
    with pytest.raises(Fatal) as failure:
        load_settings()
    assert "PORT: " in str(failure.value)
    assert "MIN_SAFETY_SCORE: " in str(failure.value)


def test_fleets_are_a_comma_separated_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETS", "north, south,")
    assert load_settings().fleets == ("north", "south")


def test_secrets_do_not_show() -> None:
    assert "vlastream:vlastream" not in repr(Settings(_env_file=None))


def test_the_environment_is_read_in_settings_alone() -> None:
    reading = re.compile(r"os\.environ|os\.getenv")
    allowed = {
        Path("runtime/settings.py"),
        # Hands its own environment on to the processes that it starts.
        Path("schemas/generate.py"),
    }
    packages = ("schemas", "runtime", "ingest_api", "stream_agents", "gpu_consumers", "sinks", "robot_client")
    readers = {
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if reading.search(path.read_text())
    }
    assert {path for path in readers - allowed if path.parts[:2] != ("runtime", "stack")} == set()
