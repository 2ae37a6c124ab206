"""Who uses the model next: the engine's policy, free of tensors, threads and clocks.

Requests wait in order of arrival. A free slot takes the next one; its prompt is run in pieces between decoding steps,
so that those who decode never wait for more than `prefill_budget` prompt tokens; all that are decoding take each step
together. Slots are made for one layout (block length, and room for a number of tokens). A request that needs another
layout waits until the slots are empty, and nobody overtakes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """What the slots are made for: blocks of `block_length`, `tokens` of prompt and answer, fused passes or not."""

    block_length: int
    tokens: int
    fused: bool = True

    def takes(self, other: Layout) -> bool:
        """Whether a request with the needs `other` fits."""
        return (self.block_length, self.fused) == (other.block_length, other.fused) and self.tokens >= other.tokens


@dataclass(eq=False)
class Ticket:
    """One request's place in the schedule. `prompt_tokens` is also the price of its pictures and prompt."""

    needs: Layout
    prompt_tokens: int
    deadline: float | None = None
    slot: int | None = None
    prefilled: int = 0

    @property
    def decoding(self) -> bool:
        """Whether the prompt is done."""
        return self.slot is not None and self.prefilled >= self.prompt_tokens


@dataclass(frozen=True)
class Turn:
    """What is to be done next, in this order."""

    layout: Layout | None = None
    """Make the slots anew for this layout; they are empty."""
    admit: tuple[Ticket, ...] = ()
    """These have just got their `slot`."""
    prefill: tuple[tuple[Ticket, int], ...] = ()
    """Run that many prompt tokens of these."""
    decode: tuple[Ticket, ...] = ()
    """Take one step with these."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.layout or self.admit or self.prefill or self.decode)


@dataclass
class Scheduler:
    """Waiting and running requests. `leave` may be called for any ticket at any time, also more than once."""

    slots: int
    prefill_budget: int = 512
    layout: Layout | None = None
    waiting: deque[Ticket] = field(default_factory=deque)
    running: dict[int, Ticket] = field(default_factory=dict)

    def join(self, ticket: Ticket) -> None:
        """A new request, at the end of the queue."""
        self.waiting.append(ticket)

    def leave(self, ticket: Ticket) -> bool:
        """A request has ended, however. Says whether it was still known."""
        if ticket.slot is not None and self.running.get(ticket.slot) is ticket:
            del self.running[ticket.slot]
            ticket.slot = None
            return True
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            return True
        return False

    def expired(self, now: float) -> list[Ticket]:
        """Those whose deadline has passed, waiting or running; they are still to `leave`."""
        return [ticket for ticket in self if ticket.deadline is not None and ticket.deadline <= now]

    def __iter__(self) -> Iterator[Ticket]:
        yield from list(self.waiting)
        yield from list(self.running.values())

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def turn(self) -> Turn:
        """Decide the next piece of work, and book it as done."""
        layout = self._layout()
        admitted = tuple(self._admit())
        prefill = tuple(self._prefill())
        decode = tuple(ticket for _, ticket in sorted(self.running.items()) if ticket.decoding)
        return Turn(layout, admitted, prefill, decode)

    def _layout(self) -> Layout | None:
        """The layout that the next in the queue needs, when the slots are empty and made for another."""
        if self.running or not self.waiting:
            return None
        needs = self.waiting[0].needs
        if self.layout is not None and self.layout.takes(needs):
            return None
        self.layout = needs
        return needs

    def _admit(self) -> Iterator[Ticket]:
        while self.waiting and self.layout is not None and self.layout.takes(self.waiting[0].needs):
            # The lowest free one: a step runs over all slots up to the highest that is taken.
            slot = next((number for number in range(self.slots) if number not in self.running), None)
            if slot is None:
                return
            ticket = self.waiting.popleft()
            ticket.slot = slot
            self.running[slot] = ticket
            yield ticket

    def _prefill(self) -> Iterator[tuple[Ticket, int]]:
        """Pieces of prompts, in order of arrival (which is the order of `running`), within the budget.

        When nobody decodes nobody waits, and one whole prompt is run.
        """
        pending = [ticket for ticket in self.running.values() if not ticket.decoding]
        if not pending:
            return
        if len(pending) == len(self.running):
            budget = pending[0].prompt_tokens - pending[0].prefilled
        else:
            budget = self.prefill_budget
        for ticket in pending:
            if budget <= 0:
                return
            rows = min(budget, ticket.prompt_tokens - ticket.prefilled)
            ticket.prefilled += rows
            budget -= rows
            yield ticket, rows
