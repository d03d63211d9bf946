"""GPU consumers follow the lag by KEDA's formula: under a wave of load they come and go, and nothing is lost.

The short form of `make scaling` (benchmarks/scaling), which draws what happens.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling.scaled_object import of_simulated
from benchmarks.scaling.wave import DEVICE, Phase, play, shots
from runtime.settings import Settings

pytestmark = [pytest.mark.stack, pytest.mark.slow]

#: More than two devices can do, for longer than a third takes to start.
WAVE = (Phase(4, 2), Phase(24, 18), Phase(8, 2))
#: The ScaledObject's ten minutes of less work become ten seconds.
FASTER = 60.0


@pytest.mark.timeout(600)
def test_consumers_come_with_the_lag_and_go_without_it_and_every_request_has_one_outcome(tmp_path: Path) -> None:
    spec = of_simulated(DEVICE, partitions=Settings(_env_file=None).kafka_accepted_partitions).faster(FASTER)
    assert DEVICE.best_rate * 2 < WAVE[1].rate_hz

    run = play(WAVE, spec, folder=tmp_path / "stack", say=print)

    assert run.faults() == []
    assert len(run.requests) == len(shots(WAVE))
    assert set(run.decided) == {request.answer.request_id for request in run.requests}
    assert run.samples[0].desired == spec.min_replica_count
    assert run.peak >= 3
    assert len(run.served) >= 3, "every consumer that came has served"
    assert all(sample.desired <= spec.max_replica_count for sample in run.samples)
    assert (run.samples[-1].desired, run.samples[-1].running) == (spec.min_replica_count, spec.min_replica_count)
