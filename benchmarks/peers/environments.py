"""One virtual environment a peer: its own packages first, then what the policy needs from this one (torch, numpy)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

#: Beside the embedded stack's data, so that `make clean` removes them too.
FOLDER = Path(".vlastream/peers")
_ROOT = Path(__file__).resolve().parents[2]
#: Lines of a .pth file come after an environment's own packages: a peer's versions win.
_PATH_FILE = "vlastream.pth"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is compared. `packages` are what its environment gets; `module` serves the policy with it."""

    name: str
    title: str
    packages: tuple[str, ...]
    module: str
    health: str
    #: Package whose version the report names; empty where it is a checkout.
    versioned: str = ""


PEERS = (
    Peer(
        "openpi",
        "openpi websocket_policy_server",
        ("msgpack", "typing-extensions", "websockets"),
        "benchmarks.peers.openpi_server",
        "/healthz",
    ),
    Peer(
        "vla-eval", "vla-eval batching server", ("vla-eval",), "benchmarks.peers.vla_eval_server", "/health", "vla-eval"
    ),
    Peer("ray", "Ray Serve, @serve.batch", ("ray[serve]",), "benchmarks.peers.ray_server", "/-/healthz", "ray"),
)


def python_of(peer: Peer, folder: Path) -> Path:
    return folder.absolute() / f"venv-{peer.name}" / "bin" / "python"


def is_installed(peer: Peer, folder: Path) -> bool:
    python = python_of(peer, folder)
    return python.exists() and any(python.parents[1].glob(f"lib/*/site-packages/{_PATH_FILE}"))


def install(peer: Peer, folder: Path) -> None:
    """Make the peer's environment. Raises CalledProcessError where a package cannot be had."""
    python = python_of(peer, folder)
    place = python.parents[1]
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is not None:
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, place], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *peer.packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.packages], check=True)
    site_packages = next(place.glob("lib/*/site-packages"))
    (site_packages / _PATH_FILE).write_text(f"{_ROOT}\n{sysconfig.get_paths()['purelib']}\n")


def version_of(peer: Peer, folder: Path) -> str:
    """What `peer.versioned` is at in its environment; empty where that says nothing."""
    if not peer.versioned:
        return ""
    code = f"import importlib.metadata as m; print(m.version({peer.versioned!r}))"
    done = subprocess.run([python_of(peer, folder), "-c", code], capture_output=True, text=True)
    return done.stdout.strip()
