"""Forms of the console that act once, by a real Valkey: over several API processes, and while it is away."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from pydantic import SecretStr

from ingest_api.console.sent_forms import ValkeyForms
from ingest_api.console.session import SESSION_S
from runtime.errors import Unavailable
from runtime.settings import Settings
from runtime.stack.layout import free_port

PROCESSES = 4


def forms_at(url: str, limits_url: str = "") -> ValkeyForms:
    return ValkeyForms.of(
        Settings(_env_file=None, redis_url=SecretStr(url), rate_limit_redis_url=SecretStr(limits_url))
    )


def test_of_processes_that_get_a_form_at_the_same_time_one_is_first(valkey_url: str) -> None:
    processes = [forms_at(valkey_url) for _ in range(PROCESSES)]
    together = threading.Barrier(PROCESSES)

    def ask(process: ValkeyForms, form: str) -> bool:
        together.wait(30)
        return process.is_first(form)

    with ThreadPoolExecutor(PROCESSES) as pool:
        for _ in range(20):
            form = uuid.uuid4().hex
            assert sorted(pool.map(ask, processes, [form] * PROCESSES)) == [False] * (PROCESSES - 1) + [True]
    for process in processes:
        process.close()


def test_a_form_is_remembered_as_long_as_its_session_may_last_and_no_longer(valkey_url: str) -> None:
    forms, form = forms_at(f"redis://127.0.0.1:{free_port()}/0", valkey_url), uuid.uuid4().hex
    assert forms.is_first(form)
    with redis.Redis.from_url(valkey_url) as client:
        (name,) = client.scan_iter(match=f"*{form}")
        assert SESSION_S - 60 < client.ttl(name) <= SESSION_S
    forms.close()


def test_without_valkey_nobody_is_told_to_be_first() -> None:
    forms = forms_at(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable, match="Valkey does not answer"):
        forms.is_first("form")
    forms.close()
