"""Where every process of an installation serves its metrics."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from runtime.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """One process and where its /metrics is."""

    role: str
    url: str

    @property
    def instance(self) -> str:
        return urlsplit(self.url).netloc


def targets_of(settings: Settings) -> list[Target]:
    """The processes of the embedded stack while its file is there, else those that the settings name."""
    try:
        document = json.loads(settings.stack_file.read_text(encoding="utf-8"))
        # Servers that are not ours have none.
        serving = [process for process in document["processes"] if process["metrics"]]
        return [Target(str(process["role"]), str(process["metrics"])) for process in serving]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used: %s", settings.stack_file, error, extra={"action": "federate"})
    pairs = (entry.partition("=") for entry in settings.federate_targets)
    return [Target(role, url) for role, separator, url in pairs if separator]


def targets_file(settings: Settings) -> str:
    """The targets in Prometheus' format of file_sd_configs, each with its role as a label."""
    found = [
        {"targets": [target.instance], "labels": {"role": target.role, "__metrics_path__": urlsplit(target.url).path}}
        for target in targets_of(settings)
    ]
    return json.dumps(found, indent=2)
