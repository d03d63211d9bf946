"""Notices a Kafka client that has forgotten all of its brokers.

A cluster that just came back may name topics and no broker. librdkafka from 2.13 on then drops the brokers that it
knew and may never look at bootstrap.servers again (confluentinc/librdkafka#5301): the process seems to be ready, and
its client hears and sends nothing for ever. Only a new client helps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from runtime.errors import Unavailable

#: How often a client reports.
INTERVAL_MS = 5000
#: librdkafka's own search for brokers gets this long.
PATIENCE_S = 20.0
#: Brokers of these sources are addresses; the others are names of roles that one of them plays.
_ADDRESSES = frozenset({"learned", "configured"})


class BrokerWatch:
    """A `stats_cb`: the client's poll() raises Unavailable once it has known no broker for PATIENCE_S.

    A broker that is known and down is no reason: librdkafka goes on trying that one.
    """

    def __init__(self, client_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client_id = client_id
        self._clock = clock
        self._alone_since: float | None = None

    def __call__(self, statistics: str) -> None:
        brokers = json.loads(statistics)["brokers"].values()
        now = self._clock()
        if any(broker["source"] in _ADDRESSES for broker in brokers):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= PATIENCE_S:
            raise Unavailable(f"the Kafka client {self._client_id} has forgotten its brokers: a new one must be made")
