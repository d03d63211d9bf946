"""The four dashboards: operations, usage, safety, customers.

`python -m deploy.grafana.boards` writes them to deploy/grafana/dashboards; tests hold the files to this.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.customers import CUSTOMERS
from deploy.grafana.operations import OPERATIONS
from deploy.grafana.panels import Dashboard
from deploy.grafana.safety import SAFETY
from deploy.grafana.usage import USAGE

FOLDER = Path(__file__).parent / "dashboards"

DASHBOARDS = (OPERATIONS, USAGE, SAFETY, CUSTOMERS)


def file_of(dashboard: Dashboard) -> Path:
    return FOLDER / f"{dashboard.uid.removeprefix('vlastream-')}.json"


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.document(), indent=1) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        file_of(one).write_text(text_of(one))
