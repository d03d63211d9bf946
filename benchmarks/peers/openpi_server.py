"""openpi's own server file, from a checkout of its repository, around our policy. Runs in the peer's environment."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.policy_host import PolicyHost, Seen


class Adapter:
    """openpi's BasePolicy: one observation in, `{"actions": (horizon, action_dim)}` out."""

    def __init__(self, host: PolicyHost) -> None:
        self._host = host

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        seen = Seen(obs["prompt"], obs["observation/image"], np.asarray(obs["observation/state"], np.float32))
        return {"actions": self._host.infer([self._host.prepare(seen)])[0]}

    def reset(self) -> None:
        """Nothing is kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--openpi", type=Path, required=True)
    options = parser.parse_args()
    sys.path.append(str(options.openpi / "packages" / "openpi-client" / "src"))
    # The file alone: the package around it imports jax and the models.
    file = options.openpi / "src" / "openpi" / "serving" / "websocket_policy_server.py"
    spec = importlib.util.spec_from_file_location("websocket_policy_server", file)
    if spec is None or spec.loader is None:
        sys.exit(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    adapter = Adapter(PolicyHost(options.policy))
    module.WebsocketPolicyServer(adapter, host="127.0.0.1", port=options.port).serve_forever()


if __name__ == "__main__":
    main()
