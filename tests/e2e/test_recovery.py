"""The database is deleted under the running system, and comes back from the log; a backup comes back up to date."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from runtime.settings import Settings
from runtime.stack.roles import vlastream
from sinks.books import read_books
from tests.e2e.running_stack import RunningStack, observation
from tests.e2e.test_data import Customer

pytestmark = [pytest.mark.stack, pytest.mark.slow]

#: What the customer of this test leaves behind, without what says when or under which number it was written.
_TABLES = {
    "inference_log": (),
    "safety_incidents": (),
    "context_metadata": ("written_at",),
    "feedback": ("created_at",),
    "episodes": (),
    "customer_data_consent": (),
    "consent_audit": ("id",),
}


@pytest.fixture
def customer(stack: RunningStack, settings: Settings) -> Iterator[Customer]:
    made = Customer(stack, settings)
    yield made
    made.close()


def run(stack: RunningStack, *arguments: str) -> str:
    """A `vlastream` command beside the stack, with the stack's own settings."""
    environment = {**stack.environment, "DEFAULT_CONSENT_TIER": "full"}
    done = subprocess.run(vlastream(*arguments), env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(stack: RunningStack, customer_id: str) -> dict[str, list[str]]:
    found = {}
    with psycopg.connect(stack.file["database"]) as connection:
        for table, volatile in _TABLES.items():
            query = sql.SQL("SELECT to_jsonb(t) FROM {} AS t WHERE customer_id = %s").format(sql.Identifier(table))
            rows: list[dict[str, Any]] = [row[0] for row in connection.execute(query, [customer_id])]
            kept = [{name: value for name, value in row.items() if name not in volatile} for row in rows]
            found[table] = sorted(json.dumps(row, sort_keys=True) for row in kept)
    return found


@pytest.mark.timeout(900)
def test_a_deleted_database_comes_back_from_the_log_and_a_restored_backup_is_brought_up_to_now(
    stack: RunningStack, settings: Settings, customer: Customer, tmp_path: Path
) -> None:
    customer.send("PUT", "/v1/customers/me/consent", {"tier": "full"})
    episode = {"robot_id": "arm-1", "episode_id": "r-1"}
    customer.send("POST", "/v1/episodes", {"event": "start", "task": "push the block", **episode})
    requests = [customer.infer(seed, **episode) for seed in (901, 902)]
    customer.wait(lambda: all(customer.row(one)[1] for one in requests), "the vectors did not come")
    customer.send("POST", "/v1/feedback/success", {"request_id": requests[0], "success": True, "rating": 4})
    (customer_id,) = stack.rows("SELECT customer_id FROM inference_log WHERE request_id = %s", requests[0])[0]
    customer.wait(
        lambda: [len(contents(stack, customer_id)[table]) for table in ("feedback", "episodes")] == [1, 1],
        "feedback and episode did not come",
    )
    taken = run(stack, "keys", "create", "--email", "taken@example.org", "--tier", "free", "--name", "taken").split()[
        -1
    ]
    folder = tmp_path / "backup"
    assert "rows of" in run(stack, "backup", "create", str(folder))
    assert "is sound" in run(stack, "backup", "verify", str(folder))

    before = contents(stack, customer_id)
    assert [len(before[table]) for table in ("inference_log", "episodes", "customer_data_consent")] == [2, 1, 1]
    keys = stack.rows("SELECT id, key_hash, is_active FROM api_keys ORDER BY id")
    _drop_database(stack)
    in_between = customer.infer(903)
    told = run(stack, "rebuild", "--yes", "--keys-from", str(folder))
    assert "of vla.outcomes.v1" in told
    customer.wait(lambda: bool(_rows_of(stack, in_between)), "the sink did not go on")
    after = contents(stack, customer_id)
    after["inference_log"] = [row for row in after["inference_log"] if in_between not in row]
    after["context_metadata"] = [row for row in after["context_metadata"] if row in before["context_metadata"]]
    assert after == before
    assert stack.rows("SELECT id, key_hash, is_active FROM api_keys ORDER BY id") == keys
    assert read_books(settings, 60).balanced, read_books(settings, 1).explain()

    later = customer.infer(904)
    customer.wait(lambda: bool(_rows_of(stack, later)), "the row did not come")
    run(stack, "keys", "revoke", taken[:12])
    revoked = "SELECT 1 FROM audit_log JOIN api_keys ON target = 'key:' || id WHERE action = 'key.revoke' AND name = %s"
    customer.wait(lambda: bool(stack.rows(revoked, "taken")), "the revocation did not come")
    told = run(stack, "backup", "restore", "--yes", str(folder))
    assert "1 keys ended" in told
    assert stack.rows("SELECT is_active FROM api_keys WHERE name = 'taken'") == [(False,)]
    assert "drop it when you are content" in told
    assert "models: 0 files put in place" in told
    assert "0 differ and were left" in told
    assert _rows_of(stack, later), "what came after the backup is read from the log"
    restored = contents(stack, customer_id)
    assert set(before["inference_log"]) < set(restored["inference_log"])
    assert read_books(settings, 60).balanced, read_books(settings, 1).explain()
    assert stack.post(observation(905)).status_code == 200


def _rows_of(stack: RunningStack, request_id: str) -> list[tuple[Any, ...]]:
    try:
        return stack.rows("SELECT id FROM inference_log WHERE request_id = %s", request_id)
    except psycopg.OperationalError:
        return []


def _drop_database(stack: RunningStack) -> None:
    url = make_url(stack.file["database"])
    beside = url.set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(beside, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(url.database or "")))
