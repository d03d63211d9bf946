"""The whole embedded stack as one object: servers, set-up steps, roles, and the stack.json that describes them."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.stack.component import Command, Component, Say
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout, read_json, write_json
from runtime.stack.postgres import Postgres
from runtime.stack.replicas import Replicas
from runtime.stack.roles import ROLES, Role, RoleProcess, SetupStep, setup_steps
from runtime.stack.s3 import S3
from runtime.stack.security import StackSecurity, remember_mode
from runtime.stack.supervisor import Supervisor
from runtime.stack.tls import TlsFront
from runtime.stack.valkey import Valkey
from schemas.access import ADMIN_USER

_SERVERS_TIMEOUT_S = 120.0
#: Part of the time for stopping that is kept for the servers, after the roles.
_SERVERS_STOP_S = 10.0


class Stack:
    """Starts everything, keeps it running, and ends it.

    One thread of the stack's own starts and watches all processes, as they end when the thread that started them
    does: so a stack may be used from any thread, and nothing survives the program that made it.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        roles: Sequence[Role] = ROLES,
        setup_steps: Sequence[SetupStep] = setup_steps(),
        env: Mapping[str, str] | None = None,
        api_port: int = 8000,
        secure: bool = False,
        say: Say = print,
    ) -> None:
        """`env` goes to every role and set-up step, above this program's environment and what the stack itself sets.

        `secure`: every server is spoken to by TLS, and each role has a Kafka user that may do what it needs.

        `api_port` is only preferred: where it is taken the API gets another one, told in stack.json.
        """
        self.layout = layout
        self._roles = roles
        self._setup_steps = setup_steps
        self._env = dict(env or {})
        self._api_port = api_port
        self._secure = secure
        self._security: StackSecurity | None = None
        self._tls: TlsFront | None = None
        self._say = say
        self._lock: IO[str] | None = None
        self._api_key: str | None = None
        self._supervisor = Supervisor(layout, say=say, on_change=self._write_stack_file)
        self._replicas = Replicas(layout, roles, self._supervisor, self._role_process, say)
        self._stop = threading.Event()
        self._at_once = threading.Event()
        self._started = threading.Event()
        self._ended = threading.Event()
        self._stop_timeout_s = 60.0
        self._failure: BaseException | None = None

    def start(self, timeout_s: float = 300.0) -> dict[str, Any]:
        """Start everything and wait until it serves. Returns what stack.json says. Raises Fatal, with nothing left."""
        self.layout.create()
        self._lock = _take_lock(self.layout)
        threading.Thread(target=self._run, args=(timeout_s,), name="stack", daemon=True).start()
        try:
            while not (self._started.wait(0.2) or self._ended.is_set()):
                pass
        except BaseException:
            self.stop()
            raise
        if self._failure is not None:
            self._ended.wait()
            raise self._failure
        return dict(read_json(self.layout.stack_file))

    def wait(self) -> None:
        """Until everything has ended. Raises Fatal if that was not asked for."""
        while not self._ended.wait(1.0):
            pass
        if self._failure is not None:
            raise self._failure

    def request_stop(self) -> None:
        """Begin to end: the roles in the order of the flow, so that each finishes what the one before sent on.

        Called a second time, end everything at once. May be called from a signal handler.
        """
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    def stop(self, timeout_s: float = 60.0) -> None:
        """End everything in order, by SIGKILL what is not gone after `timeout_s`, and return when it is gone."""
        self._stop_timeout_s = timeout_s
        self._stop.set()
        self._ended.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, timeout_s: float) -> None:
        try:
            deadline = Deadline(timeout_s)
            self._supervisor.end_orphans()
            self.layout.stack_file.unlink(missing_ok=True)
            self._start_servers(deadline)
            self._set_up()
            self._start_roles(deadline)
            self._started.set()
            while not self._stop.wait(0.05):
                self._supervisor.tick()
                self._replicas.follow()
        except BaseException as error:
            self._failure = error
        finally:
            self._end()

    def _end(self) -> None:
        try:
            deadline = Deadline(self._stop_timeout_s)
            roles_deadline = Deadline(max(self._stop_timeout_s - _SERVERS_STOP_S, 0))
            processes = self._replicas.processes
            names = dict.fromkeys(process.role for process in processes)
            stages = [[p for p in processes if p.role == name] for name in names]
            self._supervisor.stop(stages, roles_deadline, self._at_once)
            servers = [component for component, _ in self._supervisor.running]
            self._supervisor.stop([servers], deadline, self._at_once)
            self.layout.stack_file.unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.close()
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._ended.set()

    def _start_servers(self, deadline: Deadline) -> None:
        if remember_mode(self.layout, secure=self._secure):
            self._security = StackSecurity(self.layout, self._fleets.split(","))
            self._security.prepare()
        self._kafka = Kafka(self.layout, security=self._security)
        self._postgres = Postgres(self.layout)
        self._valkey = Valkey(self.layout)
        self._s3 = S3(self.layout, security=self._security)
        servers: list[Component] = [self._kafka, self._postgres, self._valkey, self._s3]
        if self._security is not None:
            self._tls = TlsFront(self.layout, self._security, self._postgres, self._valkey)
            servers.append(self._tls)
        self._servers = servers
        preparations = [_Preparation(server, self._say) for server in servers]
        began_s = told_s = time.monotonic()
        while preparations:
            for preparation in [p for p in preparations if p.is_done]:
                preparations.remove(preparation)
                preparation.raise_failure()
                self._supervisor.add(preparation.component)
            if deadline.passed or self._stop.is_set():
                raise Fatal("stopped, or out of time, while the servers were being prepared")
            if time.monotonic() - told_s >= 2.0:
                told_s = time.monotonic()
                names = ", ".join(preparation.component.name for preparation in preparations)
                self._say(f"preparing {names} ({told_s - began_s:.0f} s)")
            self._stop.wait(0.02)
        self._supervisor.wait_ready(servers, Deadline(min(_SERVERS_TIMEOUT_S, deadline.remaining_s)), self._stop)
        if self._security is not None:
            self._postgres.make_users(self._security.database_passwords)

    def _set_up(self) -> None:
        env = self._shared_env() | self._identity(ADMIN_USER)
        log_file = self.layout.log("setup")
        for step in self._setup_steps:
            self._supervisor.tick()
            argv = (*step.argv, *step.secure_argv) if self._security is not None else step.argv
            command = Command(argv, env=env | {"LOG_FORMAT": "text"})
            began_s = time.monotonic()
            self._say(f"setting up: {step.name}")
            if step.makes_secret is None:
                command.run(log=log_file)
            else:
                make = partial(_last_word, command, log_file)
                secret = self.layout.secret(step.makes_secret, make)
                if step.makes_secret == "api_key":
                    self._api_key = secret
            self._say(f"{step.name}: set up in {time.monotonic() - began_s:.1f} s")

    def _start_roles(self, deadline: Deadline) -> None:
        self._replicas.start()
        self._supervisor.wait_ready(self._replicas.processes, deadline, self._stop)

    def _role_process(self, role: Role, instance: int) -> RoleProcess:
        env = self._shared_env() | self._identity_of(role)
        return RoleProcess(self.layout, role, instance, env, self._api_port)

    def _shared_env(self) -> dict[str, str]:
        s3 = self._s3.settings
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap,
            "DATABASE_URL": self._database_url,
            "REDIS_URL": self._redis_url,
            "ENABLE_S3_STORAGE": "true",
            "S3_ENDPOINT": s3.endpoint,
            "S3_BUCKET": s3.bucket,
            "S3_ACCESS_KEY": s3.access_key,
            "S3_SECRET_KEY": s3.secret_key,
            "STACK_FILE": str(self.layout.stack_file.resolve()),
            "LOG_FORMAT": "json",
            "SECRET_KEY": self.layout.secret("secret_key"),
            "JWT_SECRET_KEY": self.layout.secret("jwt_secret_key", lambda: secrets.token_hex(32)),
            "FLEETS": self._fleets,
            # A broker of our own lets a dead member go sooner than the default of other installations.
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
            **self._env,
        }

    @property
    def _fleets(self) -> str:
        return self._env.get("FLEETS", "demo")

    @property
    def _database_url(self) -> str:
        return self._postgres.dsn if self._tls is None else self._tls.database_url

    @property
    def _redis_url(self) -> str:
        return self._valkey.url if self._tls is None else self._tls.redis_url

    def _identity(self, user: str) -> dict[str, str]:
        """What makes a process this user of Kafka, or lets it check certificates where it uses no Kafka."""
        if self._security is None:
            return {}
        if user not in self._security.users:
            return {"S3_CA_BUNDLE": str(self._security.certificates.ca)}
        settings = self._security.kafka_settings(user) | self._security.second_user(user)
        return {name.upper(): value for name, value in settings.items()}

    def _identity_of(self, role: Role) -> dict[str, str]:
        return self._identity(role.user) | self._database_identity(role.user)

    def _database_identity(self, role: str) -> dict[str, str]:
        """What makes a process its role's user of Postgres; operators' commands and set-up own the tables."""
        if self._security is None or self._tls is None:
            return {}
        user = self._security.database_user(role)
        url = self._tls.database_url_of(user, self._security.database_passwords.get(user, ""))
        return {"DATABASE_URL": url}

    def _write_stack_file(self) -> None:
        processes = self._replicas.processes
        if self._stop.is_set() or not processes:
            return
        api = next((process.url for process in processes if process.role == "api"), None)
        pids = {component.name: pid for component, pid in self._supervisor.running}
        write_json(
            self.layout.stack_file,
            {
                "api": api,
                "kafka": self._kafka.bootstrap,
                "database": self._database_url,
                "redis": self._redis_url,
                "s3": asdict(self._s3.settings),
                "api_key": self._api_key,
                "fleets": ",".join(read_json(self.layout.fleets_file) or [self._fleets]),
                **self._security_document(),
                "supervisor_pid": os.getpid(),
                "replicas": self._replicas.wanted,
                "processes": [
                    {"role": component.role, "pid": pids[component.name], "metrics": component.metrics_url}
                    for component in (*self._servers, *processes)
                    if component.name in pids
                ],
            },
        )

    def _security_document(self) -> dict[str, Any]:
        """What clients need besides addresses: settings for operators' commands, and each fleet's user."""
        if self._security is None:
            return {}
        return {
            "security": self._security.kafka_settings(ADMIN_USER),
            "fleet_users": self._security.fleet_credentials(),
        }


class _Preparation:
    """A component's `prepare` in a thread of its own, which does not keep the program from ending."""

    def __init__(self, component: Component, say: Say) -> None:
        self.component = component
        self._say = say
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"prepare-{component.name}", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self.component.prepare(self._say)
        except BaseException as error:
            self._failure = error


def _last_word(command: Command, log_file: Path) -> str:
    """What the command prints last: a new secret, which must not get into the log."""
    words = command.run(log=log_file, capture=True).split()
    if not words:
        raise Fatal(f"{command} printed nothing; its log is {log_file}")
    return words[-1]


def _take_lock(layout: Layout) -> IO[str]:
    """The lock of this folder; the system gives it back when the program ends, however that happens."""
    lock = layout.lock_file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Fatal(f"a stack already runs in {layout.folder}: `vlastream ps` shows it") from error
    return lock


def is_running(folder: Path) -> bool:
    """Whether a supervisor holds this folder now."""
    layout = Layout(folder)
    if not layout.lock_file.exists():
        return False
    try:
        _take_lock(layout).close()
    except Fatal:
        return True
    return False
