"""Virtual time: one agenda for all actors, one clock that never jumps, and walls that may.

The world is a heap of (instant, seeded tie, sequence, actor). Who is due first steps, and says when it wants to be
called again. Actors due at the same millisecond step in an order drawn from the seed, so no test leans on the order in
which they were made. It knows actors by `step` only.
"""

from collections.abc import Callable
from heapq import heappop, heappush

from rqlab.simulation.chance import Chance

EPOCH = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC: what a right wall clock shows as a world begins


class Actor:
    """Whatever does something at an instant; `step` gives the next one, None for never."""

    __slots__ = ("due_at", "entry", "name", "turns")

    def __init__(self, name: str) -> None:
        self.name = name  #: unlike every other's: the order of simultaneous steps is drawn by it
        self.turns = 0  #: how often it was put on the agenda
        self.entry = 0  #: its entry on the agenda that counts; 0: none
        self.due_at = 0  #: of that entry

    def step(self, now: int) -> int | None:
        raise NotImplementedError


class Call(Actor):
    """A function to be called once, or again whenever it says."""

    __slots__ = ("_function",)

    def __init__(self, name: str, function: Callable[[int], int | None]) -> None:
        super().__init__(name)
        self._function = function

    def step(self, now: int) -> int | None:
        return self._function(now)


class World:
    """The agenda and the monotonic clock; `now` is milliseconds since the beginning."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance
        self.now = 0
        self.steps = 0
        self.steps_allowed = 10_000_000  #: a world that goes round for ever is stopped
        self.is_over = False  #: set it, and `run` returns after the present step
        self._heap: list[tuple[int, bytes, int, Actor]] = []
        self._sequence = 0

    def call(self, actor: Actor, at: int) -> None:
        """Step the actor at `at`, and not at the instant that it was down for."""
        self._sequence += 1
        actor.turns += 1
        actor.entry, actor.due_at = self._sequence, at
        heappush(self._heap, (at, self.chance.tie(actor.name, actor.turns), self._sequence, actor))

    def call_by(self, actor: Actor, at: int) -> None:
        """Step the actor at `at` unless it is due earlier; nothing if it is not on the agenda."""
        if actor.entry and actor.due_at > at:
            self.call(actor, at)

    def cancel(self, actor: Actor) -> None:
        actor.entry = 0

    def run(self, until: int) -> None:
        """Step whoever is due up to `until`, that instant included."""
        heap, tie = self._heap, self.chance.tie
        while heap and heap[0][0] <= until and not self.is_over and self.steps < self.steps_allowed:
            at, _, entry, actor = heappop(heap)
            if actor.entry != entry:
                continue  # it was put off, or taken from the agenda
            actor.entry = 0
            self.now = at
            self.steps += 1
            again_at = actor.step(at)
            if again_at is not None and not actor.entry:
                self._sequence += 1
                actor.turns += 1
                actor.entry, actor.due_at = self._sequence, again_at
                heappush(heap, (again_at, tie(actor.name, actor.turns), self._sequence, actor))
        if not self.is_over:
            self.now = max(self.now, until)


class Wall:
    """What one process takes for the time of day; nobody else's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ahead = 0.0  # milliseconds, at `_since`
        self._since = 0
        self._drift = 0.0  # milliseconds a millisecond

    def shows(self) -> int:
        """Milliseconds since the Unix epoch."""
        if self._ahead or self._drift:
            return EPOCH + self._world.now + self.ahead
        return EPOCH + self._world.now

    @property
    def ahead(self) -> int:
        """How many milliseconds it is fast; negative if it is slow."""
        return int(self._ahead + (self._world.now - self._since) * self._drift)

    def jump(self, milliseconds: int) -> None:
        self._ahead += milliseconds

    def drift(self, rate: float) -> None:
        """Run fast (or slow) from now on, by so many seconds a second."""
        self._ahead, self._since, self._drift = float(self.ahead), self._world.now, rate

    def set_right(self) -> None:
        self._ahead, self._drift = 0.0, 0.0
