"""What `vlastream env` hands to a shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from runtime.errors import Fatal
from runtime.settings import Settings, repository
from runtime.stack.shell import show_exports

ROOT = repository()
STACK = {
    "api": "http://127.0.0.1:8000",
    "api_key": "vla_k'ey",
    "kafka": "127.0.0.1:9092",
    "database": "postgresql://u:p$w d@127.0.0.1/v",
    "redis": "redis://:secret@127.0.0.1/0",
    "fleets": "demo",
    "s3": {"endpoint": "http://127.0.0.1:9000", "bucket": "b", "access_key": "a", "secret_key": "s"},
    "security": {"kafka_security_protocol": "SASL_SSL"},
}


def test_a_shell_has_every_address_and_secret_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(STACK))
    lines: list[str] = []
    show_exports(Settings(_env_file=None, stack_file=file), say=lines.append)
    asked = "; ".join(
        [
            *lines,
            'printf "%s\\n" "$API" "$API_KEY" "$DATABASE_URL" "$S3_BUCKET" "$KAFKA_SECURITY_PROTOCOL" "$STACK_FILE"',
        ]
    )
    said = subprocess.run(["sh", "-c", asked], check=True, capture_output=True, text=True).stdout.splitlines()
    expected = [STACK["api"], STACK["api_key"], STACK["database"], "b", "SASL_SSL", str(file.resolve())]
    assert said == expected


@pytest.mark.parametrize("secure", [False, True])
def test_a_psql_without_tls_is_led_to_a_server_that_has_it(tmp_path: Path, secure: bool) -> None:
    file = tmp_path / "stack.json"
    file.write_text(json.dumps({**STACK, "security": STACK["security"] if secure else {}}))
    lines: list[str] = []
    show_exports(Settings(_env_file=None, stack_file=file), say=lines.append)
    asked = "; ".join([*lines, "command -v psql", "psql --help" if secure else "true"])
    said = subprocess.run(["sh", "-c", asked], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert said.startswith("psql\n") is secure, "a function, or the program's path"
    assert ("Usage:" in said and "db psql" in said) is secure


def test_without_a_stack_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="vlastream up"):
        show_exports(Settings(_env_file=None, stack_file=tmp_path / "stack.json"), say=print)
