"""Nine faults under load; every one leaves all promises kept. `make soak` plays all that there are."""

from __future__ import annotations

import pytest

from tests.e2e.running_stack import RunningStack
from tests.faults.faults import SHORT, Fault
from tests.faults.play import play

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_nothing_is_lost_contradicted_late_or_out_of_order(breakable: RunningStack, fault: Fault) -> None:
    result = play(breakable, fault)
    print(result.line())
    assert result.broken == ()
    assert result.books.balanced, result.books.explain()
