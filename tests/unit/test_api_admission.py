"""Admission: never more than the places, nobody alone fills them, equal parts under overload, an honest Retry-After."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_api.admission import LONGEST_RETRY_S, SHARE, SHORTEST_RETRY_S, Admission, Slot
from ingest_api.problems import Problem
from runtime.metrics import Metrics
from schemas.codes import Code
from tests.unit.api_stand_ins import ManualClock


class Door:
    """An admission with a clock of the test's own."""

    def __init__(self, capacity: int, capacity_bytes: int = 0) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.admission = Admission(capacity, capacity_bytes, self.metrics, self.clock)

    def enter(self, customer: str, size_bytes: int = 0) -> Slot | Problem:
        try:
            return self.admission.admit(customer, size_bytes)
        except Problem as problem:
            return problem

    def fill(self, customer: str) -> list[Slot]:
        """As many places as a customer gets."""
        slots = []
        while isinstance(entered := self.enter(customer), Slot):
            slots.append(entered)
        return slots


def leave(slot: Slot) -> None:
    with slot:
        pass


_STEPS = st.lists(st.tuples(st.sampled_from(["enter", "leave"]), st.sampled_from("abcd")), max_size=200)


@given(st.integers(1, 40), _STEPS)
def test_there_are_never_more_inside_than_places_and_every_place_comes_back(
    capacity: int, steps: list[tuple[str, str]]
) -> None:
    door = Door(capacity)
    inside: dict[str, list[Slot]] = {name: [] for name in "abcd"}
    for step, name in steps:
        if step == "leave":
            if inside[name]:
                leave(inside[name].pop())
        else:
            entered = door.enter(name)
            if isinstance(entered, Slot):
                inside[name].append(entered)
            else:
                assert entered.code in (Code.QUOTA, Code.OVERLOADED)
                assert SHORTEST_RETRY_S <= entered.retry_after_s <= LONGEST_RETRY_S
        total = sum(map(len, inside.values()))
        assert door.admission.in_flight == total <= capacity
        assert {name: door.admission.held(name) for name in inside} == {n: len(slots) for n, slots in inside.items()}
    for slots in inside.values():
        for slot in slots:
            leave(slot)
    assert door.admission.in_flight == 0


@given(st.integers(2, 2000))
def test_one_customer_cannot_fill_it_alone_and_uses_most_of_it(capacity: int) -> None:
    door = Door(capacity)
    slots = door.fill("hog")
    assert capacity * 8 // 9 - 1 <= len(slots) < capacity
    assert isinstance(door.enter("newcomer"), Slot)


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 96), st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_under_overload_customers_hold_equal_parts_however_much_they_send(capacity: int, pushes: list[int]) -> None:
    door = Door(capacity)
    # The first one was there alone and has taken what it gets.
    inside = [("c0", slot) for slot in door.fill("c0")]
    for _ in range(3 * capacity):
        leave(inside.pop(0)[1])
        for index, push in enumerate(pushes):
            entered = [door.enter(f"c{index}") for _ in range(push)]
            inside += [(f"c{index}", slot) for slot in entered if isinstance(slot, Slot)]
    held = [door.admission.held(f"c{index}") for index in range(len(pushes))]
    assert max(held) - min(held) <= SHARE, held
    assert sum(held) >= 0.8 * capacity


def test_whoever_is_over_its_share_is_told_so_and_a_newcomer_that_finds_no_room_is_not_blamed() -> None:
    door = Door(9)
    door.fill("hog")
    hog = door.enter("hog")
    assert isinstance(hog, Problem)
    assert (hog.status, hog.code) == (429, "quota_exceeded")
    assert isinstance(door.enter("a"), Slot)
    newcomer = door.enter("b")
    assert isinstance(newcomer, Problem)
    assert (newcomer.status, newcomer.code) == (503, "overloaded")
    count = door.metrics.registry.get_sample_value
    assert count("vla_admission_refusals_total", {"reason": "customer_share"}) == 2
    assert count("vla_admission_refusals_total", {"reason": "full"}) == 1
    assert count("vla_requests_in_flight") == 9


def test_retry_after_follows_the_measured_service_rate() -> None:
    door = Door(100)
    assert door.admission.retry_after_s(50) == SHORTEST_RETRY_S, "nothing is known yet"
    for _ in range(200):
        door.clock.now_s += 0.1
        door.admission.count_served()
    assert door.admission.retry_after_s(50) == pytest.approx(5, rel=0.1)
    assert door.admission.retry_after_s(1) == SHORTEST_RETRY_S
    door.clock.now_s += 60
    assert door.admission.retry_after_s(1) == LONGEST_RETRY_S, "what served once serves no more"


def test_the_more_are_refused_the_later_they_are_told_to_come_back() -> None:
    door = Door(10)
    slots = door.fill("hog")
    waits: list[float] = []
    for _ in range(100):
        door.clock.now_s += 0.1
        door.admission.count_served()
        leave(slots.pop())
        slots += door.fill("hog")
        refused = [door.enter("hog") for _ in range(9)]
        waits += [problem.retry_after_s for problem in refused if isinstance(problem, Problem)]
    # About ten times as many come as are served: they shall come back about a tenth as often.
    assert 8 <= waits[-1] <= 12


def test_a_place_that_was_handed_over_is_kept_until_it_is_given_back_once() -> None:
    door = Door(4)
    with door.admission.admit("a") as slot:
        give_back = slot.hand_over()
    assert door.admission.in_flight == 1
    give_back()
    give_back()
    assert door.admission.in_flight == 0


# --- bytes

_ROOM = 1000
_BYTE_STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "send", "settle"]), st.sampled_from("abc"), st.integers(0, 300)),
    max_size=200,
)


@given(_BYTE_STEPS)
def test_no_more_bytes_are_held_than_there_is_room_and_all_of_them_come_back(steps: list[tuple[str, str, int]]) -> None:
    door = Door(20, _ROOM)
    #: Slot -> bytes that it holds; those whose record is under way stay here beyond their place.
    inside: dict[str, list[Slot]] = {name: [] for name in "abc"}
    unsettled: list[Slot] = []
    held: dict[Slot, int] = {}
    for step, name, size in steps:
        slots = inside[name]
        if step == "enter":
            entered = door.enter(name, size)
            if isinstance(entered, Slot):
                slots.append(entered)
                held[entered] = size
            else:
                assert entered.code in (Code.QUOTA, Code.OVERLOADED)
                assert entered.retry_after_s >= SHORTEST_RETRY_S
        elif step == "leave" and slots:
            slot = slots.pop(0)
            leave(slot)
            if slot not in unsettled:
                held.pop(slot, None)
        elif step == "send" and slots and slots[-1] not in unsettled and held.get(slots[-1]):
            # A record is no larger than the body that it was made of, here.
            held[slots[-1]] = held[slots[-1]] * 3 // 4
            slots[-1].record_sent(held[slots[-1]])
            unsettled.append(slots[-1])
        elif step == "settle" and unsettled:
            slot = unsettled.pop(0)
            slot.record_settled()
            held[slot] = 0
        assert door.admission.held_bytes == sum(held.values()) <= _ROOM
    for slot in unsettled:
        slot.record_settled()
    for slots in inside.values():
        for slot in slots:
            leave(slot)
    assert (door.admission.held_bytes, door.admission.in_flight) == (0, 0)


@given(st.integers(1, 4 * _ROOM))
def test_one_customer_never_takes_all_the_room_whatever_the_size_of_its_bodies(size: int) -> None:
    door = Door(10**6, 9 * _ROOM)
    slots = []
    while isinstance(entered := door.enter("hog", size), Slot):
        slots.append(entered)
    assert slots
    assert door.admission.held_bytes <= 8 * _ROOM
    assert isinstance(door.enter("newcomer", _ROOM // 2), Slot)


def test_a_refusal_for_want_of_room_says_whose_bytes_they_are() -> None:
    door = Door(100, 900)
    assert isinstance(door.enter("hog", 800), Slot)
    hog, newcomer = door.enter("hog", 50), door.enter("newcomer", 99)
    assert isinstance(hog, Problem)
    assert isinstance(newcomer, Problem)
    assert (hog.status, hog.code, hog.violations[0]["reason"]) == (429, "quota_exceeded", "customer_share_bytes")
    assert (newcomer.status, newcomer.code, newcomer.violations[0]["reason"]) == (503, "overloaded", "full_bytes")
    assert "800 of 900 bytes" in hog.detail
    assert "800 of 900 bytes" in newcomer.detail
    count = door.metrics.registry.get_sample_value
    assert count("vla_admission_refusals_total", {"reason": "full_bytes"}) == 1
    assert count("vla_request_bytes_held") == 800


def test_a_record_that_the_log_does_not_have_keeps_its_bytes_beyond_its_answer() -> None:
    door = Door(4, 1000)
    with door.admission.admit("a", 400) as slot:
        slot.record_sent(300)
    assert (door.admission.in_flight, door.admission.held_bytes) == (0, 300)
    slot.record_settled()
    assert door.admission.held_bytes == 0
