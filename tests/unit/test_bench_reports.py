"""What a measurement is turned into: goals, tables, plots, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

import benchmarks
from benchmarks import goals, machine, report
from benchmarks.devices import H100_COGACT
from benchmarks.frames import views
from benchmarks.layers import LAYERS, Quantiles
from benchmarks.measure import Measured
from benchmarks.own_stack import Deployment, write_cards
from benchmarks.peers.environments import PEERS
from benchmarks.peers.serving import missing
from benchmarks.scenarios import SETS, Scenario, instant, named, simulated
from benchmarks.side_tables import OPENPI, OURS, Row, markdown
from runtime.cli import main as cli
from schemas.card_files import load_cards


def measured(scenario: Scenario, *, rate: float = 10.0, p50: float = 5.0, p99: float = 9.0) -> Measured:
    q = Quantiles(p50, (p50 + p99) / 2, p99)
    return Measured(
        scenario=scenario,
        requests=10,
        answered=9,
        codes={"ok": 9, "expired": 1},
        rate=rate,
        latency=q,
        late_send=q,
        within_deadline=0.9,
        stages={"request gate": q},
        layers=dict.fromkeys(LAYERS, q),
        cumulative=dict.fromkeys(LAYERS, q),
        besides_model=q,
        batches={1: 9},
        rss_mb={"api": 100.0},
        cpu_ms={"api": 1.5, "gate": 4.0},
        latencies_ms=[5.0, 6.0, 9.0],
    )


def overhead() -> Scenario:
    return Scenario(name="one robot", deployment=instant(), robots=1, hz=10, seconds=1, goal="overhead")


def saturation(workers: int) -> Scenario:
    goal: Literal["saturation", "scaling"] = "saturation" if workers == 1 else "scaling"
    deployment = simulated(H100_COGACT, workers)
    return Scenario(name=f"{workers}", deployment=deployment, robots=9, hz=None, seconds=1, goal=goal)


def test_a_goal_that_is_missed_is_called_not_met() -> None:
    found = {v.goal: v.met for v in goals.verdicts([measured(overhead(), p50=6.5, p99=9.0)])}
    assert found["besides the model, one robot: p50 <= 6 ms"] is False
    assert found["besides the model, one robot: p99 <= 20 ms"] is True
    assert found["resident set, api <= 150 MB"] is True


def test_scaling_is_judged_at_four_consumers_against_one() -> None:
    one, four = measured(saturation(1), rate=40.0), measured(saturation(4), rate=150.0)
    found = {v.goal: v for v in goals.verdicts([one, four])}
    efficiency = next(v for goal, v in found.items() if "efficiency" in goal)
    assert efficiency.measured.endswith("93.8%")
    assert not efficiency.met
    assert all("simulated" in goal for goal in found if "consumers" in goal or "best batch" in goal)


def test_a_report_shows_what_was_refused_and_the_command_that_made_it(tmp_path: Path) -> None:
    results = [measured(overhead()), measured(saturation(1), rate=40.0)]
    here = machine.describe()
    verdicts = goals.verdicts(results)
    head = report.heading("Title", here, ["vlastream", "bench", "--set", "overhead"])
    text = report.markdown(results, verdicts, head, ["a.png"])
    assert "9 of 10 (1 expired)" in text
    assert "`vlastream bench --set overhead`" in text
    path = report.save("name", text, report.document(results, verdicts, here, ["vlastream"]), tmp_path)
    assert path.read_text() == text
    assert len(json.loads((tmp_path / "name.json").read_text())["runs"]) == 2


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots", reason="matplotlib is not installed", exc_type=ModuleNotFoundError)
    drawn = plots.draw([measured(overhead()), measured(saturation(1)), measured(saturation(2))], "x", tmp_path)
    assert drawn == ["x-layers.png", "x-latency.png", "x-scaling.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


@pytest.mark.parametrize("name", SETS)
def test_every_set_asks_for_deployments_whose_cards_load(name: str, tmp_path: Path) -> None:
    for number, group in enumerate(named(name, 1.0)):
        cards = load_cards(write_cards(tmp_path / str(number), group.deployments))
        assert {card.deployment for card in cards.models} == {d.model for d in group.deployments}


def test_the_tabletop_card_keeps_its_weights_wherever_it_is_written(tmp_path: Path) -> None:
    cards = load_cards(write_cards(tmp_path / "cards", (Deployment("tabletop-pi0"),)))
    assert (cards.models[0].weights_path / "model.safetensors").exists()


def test_frames_have_the_size_that_was_asked_for() -> None:
    for view in views(2, 2, 30_000, 320, 240):
        assert all(27_000 <= len(jpeg) <= 33_000 for jpeg in view.jpegs)
    with pytest.raises(ValueError, match="choose other pixels"):
        views(1, 1, 5_000_000, 64, 64)


def test_side_by_side_says_where_ours_is_behind() -> None:
    rows = [
        Row(OURS, 1, 20.0, 60.0, 90.0, 1.0, 0),
        Row(OPENPI, 1, 25.0, 50.0, 60.0, 1.0, 0),
        Row(OURS, 16, 150.0, 90.0, 120.0, 1.0, 0),
        Row(OPENPI, 16, 25.0, 600.0, 650.0, 0.1, 0),
    ]
    text = markdown(rows, {1: 26.0}, "# Head")
    assert "+20% of 50.0 ms | **not met** |" in text
    assert "150.0/s, best of the others 25.0/s" in text


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("main", "plots"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
        monkeypatch.delattr(benchmarks, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = CliRunner().invoke(cli, ["bench", "--help"])
    assert found.exit_code == 1
    assert "matplotlib is not installed: install vlastream[bench]" in found.output


def test_a_peer_that_is_not_installed_is_left_out_with_a_reason(tmp_path: Path) -> None:
    for peer in PEERS:
        assert "benchmarks.peers setup" in missing(peer, folder=tmp_path, openpi=None)
