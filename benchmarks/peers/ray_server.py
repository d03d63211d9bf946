"""Ray Serve with `@serve.batch` around our policy, as a platform team would write it. In the peer's environment."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import threading
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.policy_host import PolicyHost, Seen, card_of

#: Ray Serve's own default.
BATCH_WAIT_S = 0.01


def deployment(policy: str) -> Any:
    """The Serve application. One replica, as there is one device; it is given more requests than it has places for."""
    from ray import serve  # type: ignore[import-not-found] # in the peers' environment alone

    max_batch = card_of(policy).batch_sizes[-1]

    class Served:
        def __init__(self) -> None:
            self._host = PolicyHost(policy)

        @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator] # of ray
        async def infer(self, prepared: list[Any]) -> list[Any]:
            # On the event loop, as in Ray's own examples: from a thread it came out slower here. Serve closes a batch
            # 10 ms after its first request, also while another one runs, so that a free loop makes many small ones.
            return list(self._host.infer(prepared))

        async def __call__(self, request: Any) -> dict[str, Any]:
            body = json.loads(await request.body())
            image = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["image"]))).convert("RGB"))
            seen = Seen(body["instruction"], image, np.asarray(body["state"], np.float32))
            chunk = await self.infer(self._host.prepare(seen))
            return {"actions": chunk.tolist()}

    options = {"num_replicas": 1, "max_ongoing_requests": 512, "ray_actor_options": {"num_cpus": 1}}
    return serve.deployment(**options)(Served).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    stop = threading.Event()
    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=4)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    serve.run(deployment(options.policy), route_prefix="/")
    print("ready", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
