"""The engine's policy, driven in any order without a model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echo_model.scheduler import Layout, Scheduler, Ticket

SMALL, LARGE, WIDE = Layout(8, 128), Layout(8, 512), Layout(16, 128)


class AnyOrder(RuleBasedStateMachine):
    """Requests come, go, expire and fail; turns are carried out as the engine would."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(slots=3, prefill_budget=32)
        self.now = 0.0
        self.made: Layout | None = None
        self.inside: dict[Ticket, int] = {}
        self.sent: list[Ticket] = []
        self.ended: list[Ticket] = []
        self.served: list[Ticket] = []

    @rule(
        needs=st.sampled_from((SMALL, SMALL, LARGE, WIDE)),
        tokens=st.integers(1, 100),
        allowed=st.none() | st.integers(1, 5),
    )
    def join(self, needs: Layout, tokens: int, allowed: int | None) -> None:
        ticket = Ticket(needs, tokens, None if allowed is None else self.now + allowed)
        self.sent.append(ticket)
        self.scheduler.join(ticket)

    @rule()
    def turn(self) -> None:
        self.now += 1
        for ticket in self.scheduler.expired(self.now):
            assert ticket.deadline is not None
            assert ticket.deadline <= self.now
            self.end(ticket)
        busy = [ticket for ticket in self.inside if ticket.decoding]
        turn = self.scheduler.turn()
        assert turn.idle == (len(self.scheduler) == 0)
        if turn.layout is not None:
            assert not self.inside, "slots are made anew only when they are empty"
            self.made = turn.layout
        for ticket in turn.admit:
            assert self.made is not None
            assert self.made.takes(ticket.needs)
            assert ticket.slot is not None
            self.inside[ticket] = ticket.slot
            self.served.append(ticket)
        if busy:
            assert sum(rows for _, rows in turn.prefill) <= 32
        for ticket, rows in turn.prefill:
            assert rows > 0
            assert ticket in self.inside
        assert set(busy) <= set(turn.decode), "who decodes takes part in every step"
        assert all(ticket.prefilled == ticket.prompt_tokens for ticket in turn.decode)

    @precondition(lambda self: len(self.scheduler))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(list(self.scheduler))))

    def end(self, ticket: Ticket) -> None:
        assert self.scheduler.leave(ticket)
        assert not self.scheduler.leave(ticket), "a second end is none"
        self.inside.pop(ticket, None)
        self.ended.append(ticket)

    @invariant()
    def slots_belong_to_one_each(self) -> None:
        taken = [ticket.slot for ticket in self.scheduler.running.values()]
        assert len(set(taken)) == len(taken) <= 3
        assert self.scheduler.running == {slot: ticket for ticket, slot in self.inside.items()}

    @invariant()
    def nobody_is_lost(self) -> None:
        assert len(self.sent) == len(self.ended) + len(self.scheduler)

    @invariant()
    def first_come_first_served(self) -> None:
        assert self.served == sorted(self.served, key=self.sent.index)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.sampled_from((SMALL, LARGE, WIDE)), st.integers(1, 200)), max_size=12))
@settings(deadline=None)
def test_everyone_is_served_without_anyone_leaving_early(asked: list[tuple[Layout, int]]) -> None:
    scheduler = Scheduler(slots=2, prefill_budget=16)
    for needs, tokens in asked:
        scheduler.join(Ticket(needs, tokens))
    served = 0
    for _ in range(1000):
        turn = scheduler.turn()
        if turn.idle:
            break
        for ticket in turn.decode:
            served += scheduler.leave(ticket)
    assert served == len(asked)
    assert len(scheduler) == 0


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    scheduler = Scheduler(slots=2, prefill_budget=10)
    first, long = Ticket(SMALL, 5), Ticket(SMALL, 25)
    scheduler.join(first)
    assert scheduler.turn().decode == (first,)
    scheduler.join(long)
    pieces = []
    while not long.decoding:
        turn = scheduler.turn()
        assert first in turn.decode
        pieces += [rows for _, rows in turn.prefill]
    assert pieces == [10, 10, 5]


def test_nobody_overtakes_a_request_that_needs_other_slots() -> None:
    scheduler = Scheduler(slots=2)
    first, other, late = Ticket(SMALL, 5), Ticket(WIDE, 5), Ticket(SMALL, 5)
    scheduler.join(first)
    scheduler.turn()
    scheduler.join(other)
    scheduler.join(late)
    assert scheduler.turn().admit == (), "slot 1 is free, but the queue's head needs others"
    scheduler.leave(first)
    turn = scheduler.turn()
    assert turn.layout == WIDE
    assert turn.admit == (other,)
