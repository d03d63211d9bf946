"""What customers allow, as a sink process knows it: read to its end before the first row is written."""

from __future__ import annotations

from functools import partial

from runtime.consent import ConsentList
from runtime.kafka import build_consumer
from runtime.lifecycle import Lifecycle
from runtime.settings import Settings
from runtime.view import CompactedView
from schemas.topics import CONSENT


class ConsentView:
    """A live ConsentList. `start` once, at the start of the process."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        self.consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
        build = partial(build_consumer, settings, f"{client_id}-consent", group=None)
        self._view = CompactedView(build, CONSENT, self.consents.update)

    def start(self, lifecycle: Lifecycle) -> None:
        self._view.start()
        lifecycle.on_close("consent view", self._view.close)

    @property
    def ready(self) -> bool:
        return self._view.ready
