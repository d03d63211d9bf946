"""The folder of an embedded stack: where everything lies, and how small files in it are written."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from runtime.errors import Fatal

LOOPBACK = "127.0.0.1"
_MAX_LOG_BYTES = 16 * 1024 * 1024


def write_json(path: Path, value: object) -> None:
    """Replace `path` in one step: a reader sees the old or the new document whole, also after a crash.

    The file can be read by its owner only, as these documents hold passwords.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The document in `path`, or None where there is none. Raises Fatal if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Fatal(f"{path} is damaged ({error}): remove it and start again") from error


@contextmanager
def whole_or_absent(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, which becomes `folder` only if the block ends well: a crash leaves nothing half made."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    yield unfinished
    unfinished.rename(folder)


def port_is_free(port: int) -> bool:
    """True if a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(taken: frozenset[int] = frozenset()) -> int:
    """A free loopback port below the range that systems give to outgoing connections (from 32768 on Linux).

    Inside that range a client that reconnects to a server which is down may be given the server's own port as its
    source, connect to itself and keep the server from coming back.
    """
    for port in random.sample(range(20_000, 32_000), 500):
        if port not in taken and port_is_free(port):
            return port
    raise Fatal("no free loopback port between 20000 and 32000: end some of the servers that run here")


@dataclass(frozen=True)
class Layout:
    """Paths, ports and passwords of one stack. Ports and passwords are made once and kept across starts."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder.absolute())  # servers get these paths, whatever their folder

    def create(self) -> None:
        """Make the folders. Raises Fatal if they cannot be used by this user."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Robots' frames lie there. Postgres, as a user of its own where the stack is root's, has to get through.
            self.data("").mkdir(mode=0o711, exist_ok=True)
            (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise Fatal(f"cannot write to {self.folder} ({error}): remove it, or change its owner") from error

    @property
    def stack_file(self) -> Path:
        return self.folder / "stack.json"

    @property
    def lock_file(self) -> Path:
        """Held locked by the running supervisor, so that there is one at most."""
        return self.folder / "lock"

    @property
    def processes_file(self) -> Path:
        """Which processes were started from here, to find those that outlived a supervisor."""
        return self.folder / "processes.json"

    @property
    def replicas_file(self) -> Path:
        """How many processes of a role are wanted, where somebody said so since the stack started."""
        return self.folder / "replicas.json"

    @property
    def fleets_file(self) -> Path:
        """The fleets that stack.json tells, where there are more than those of FLEETS."""
        return self.folder / "data" / "fleets.json"

    def data(self, name: str) -> Path:
        return self.folder / "data" / name

    def log(self, name: str) -> Path:
        """Path of a log file; one that has grown over 16 MiB is put aside first as `<name>.log.1`."""
        path = self.folder / "logs" / f"{name}.log"
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path

    def port(self, name: str, preferred: int | None = None) -> int:
        """The port of the part `name`: the one of its last start if that is free, else `preferred`, else any."""
        ports = read_json(self.folder / "ports.json") or {}
        for port in (ports.get(name), preferred):
            if port is not None and port_is_free(port):
                break
        else:
            port = free_port(frozenset(ports.values()))
        write_json(self.folder / "ports.json", ports | {name: port})
        return int(port)

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_hex(16)) -> str:
        """The secret called `name`, made at its first use."""
        # Beside the data that they open: who removes the data removes them too.
        file = self.data("secrets.json")
        known = read_json(file) or {}
        if name not in known:
            known[name] = make()
            write_json(file, known)
        return str(known[name])
