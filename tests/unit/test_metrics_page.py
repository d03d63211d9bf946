"""docs/metrics.md is what runtime/metrics.py says."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from runtime.metrics import Metrics
from runtime.metrics_page import page

ROOT = Path(__file__).resolve().parents[2]
CHECKLIST = (
    "vla_inference_requests_total", "vla_inference_duration_seconds", "vla_gpu_utilization_percent",
    "vla_gpu_memory_utilization_percent", "vla_gpu_memory_used_bytes", "vla_safety_checks_total",
    "vla_safety_rejections_total", "vla_validation_failures_total", "vla_queue_depth",
)  # fmt: skip


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == page(Metrics().catalogue), "run `make docs`"


def test_the_catalogue_lists_every_family_that_is_exported_and_the_checklist_first() -> None:
    metrics = Metrics()
    listed = [family.name for section in metrics.catalogue for family in section.families]
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(metrics.exposition().decode())
        if not family.name.startswith("process_") and not family.name.endswith("_created")
    }
    assert set(listed) == exported
    assert len(listed) == len(set(listed))
    assert {family.name for family in metrics.catalogue[0].families} >= set(CHECKLIST)


def test_names_carry_units_and_no_label_takes_a_robot_or_a_request() -> None:
    for section in Metrics().catalogue:
        for family in section.families:
            assert re.fullmatch(r"vla_[a-z_]+", family.name)
            assert family.name.endswith("_total") == (family.kind == "counter"), family.name
            assert not {"robot_id", "request_id", "robot", "request", "customer_id"} & set(family.labels), family.name
