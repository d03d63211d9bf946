"""vla-eval's batching model server around our policy, with its default waiting time. Runs in the peer's environment."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve

from benchmarks.peers.policy_host import CAMERA, PolicyHost, Seen


class Server(PredictModelServer):  # type: ignore[misc] # vla-eval has no types
    """Without a chunk size each observation is one inference, and the whole chunk is its answer."""

    def __init__(self, host: PolicyHost) -> None:
        super().__init__(max_batch_size=host.max_batch)
        self._host = host

    def predict_batch(self, obs_batch: list[dict[str, Any]], ctx_batch: list[Any]) -> list[dict[str, Any]]:
        seen = [
            Seen(obs["task_description"], obs["images"][CAMERA], np.asarray(obs["states"], np.float32))
            for obs in obs_batch
        ]
        return [{"actions": chunk} for chunk in self._host.infer([self._host.prepare(one) for one in seen])]

    def get_action_spec(self) -> dict[str, Any]:
        return {}

    def get_observation_spec(self) -> dict[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    serve(Server(PolicyHost(options.policy)), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
