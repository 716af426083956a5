"""What the lab's processes said was done, kept outside the processes that die: what is lost is counted, not guessed.

Knows no process and no record; `safety` compares it with the records.
"""

from typing import NamedTuple


class Life(NamedTuple):
    """One process from its start to its end."""

    number: int
    name: str  #: w1, producer, owner
    pid: int
    mode: str  #: a row of MODES
    in_memory: bool
    ended: str = ""  #: crashed or stopped; empty while it lives


class Acknowledged(NamedTuple):
    """A push that returned."""

    number: int  #: of the job, as it was asked for
    life: int
    at: int  #: milliseconds since the epoch, UTC


class Completed(NamedTuple):
    """An ack that returned."""

    job: str
    delivery: int
    worker: str  #: host:pid:thread; with the delivery it names one run
    life: int


class Books(NamedTuple):
    """The ledger at one moment."""

    asked: frozenset[int]
    acknowledged: dict[str, Acknowledged]  #: by the job's id
    completed: tuple[Completed, ...]
    lives: dict[int, Life]


class Ledger:
    """Asked, acknowledged, completed. Not thread-safe: its controller's lock guards it."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.acknowledged: dict[str, Acknowledged] = {}
        self.completed: dict[tuple[str, int, str], Completed] = {}
        self.lives: dict[int, Life] = {}

    def begin(self, name: str, pid: int, mode: str, in_memory: bool) -> Life:
        """A process starts."""
        life = Life(len(self.lives) + 1, name, pid, mode, in_memory)
        self.lives[life.number] = life
        return life

    def end(self, number: int, how: str) -> None:
        """A process has ended, and everything that it said has been heard."""
        self.lives[number] = self.lives[number]._replace(ended=how)

    def acknowledge(self, job: str, number: int, life: int, at: int) -> None:
        """A push returned this id."""
        self.acknowledged[job] = Acknowledged(number, life, at)

    def complete(self, job: str, delivery: int, worker: str, life: int) -> None:
        """An ack returned."""
        self.completed[job, delivery, worker] = Completed(job, delivery, worker, life)

    def books(self) -> Books:
        """All of it, as it is now."""
        return Books(frozenset(self.asked), dict(self.acknowledged), tuple(self.completed.values()), dict(self.lives))
