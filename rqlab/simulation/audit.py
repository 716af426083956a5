"""Does a queue keep what it has acknowledged? Asks any queue in a directory, ours or another's, at every power cut.

Knows nothing of the queue but two functions that its user writes: one that pushes, and one that says what is there.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rqlab.simulation.other_files import OtherFiles
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS, Cut, Platter
from rqlab.simulation.recorder import Kind, Operation, Recorder
from rqlab.simulation.recovery import laid_out, scratch_directory

if TYPE_CHECKING:
    import pandas

PROCESS_KILL = "sigkill"  # the row of CRASH_KINDS that is a kill -9; every other one is a power cut
KINDS = (PROCESS_KILL, "lost", "torn", "reorder")  # what a healthy disk may do; `garbage` and `nopsow` are a sick one's


class Loss(NamedTuple):
    """What one cut did."""

    cut: Cut
    acknowledged: int  #: pushes that had returned before it
    lost: int  #: those of them that the queue does not have afterwards
    complaint: str = ""  #: it did not open, or it holds what was never pushed; a queue that does not open has lost all


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found; as text, its verdict in one sentence."""

    losses: tuple[Loss, ...]  #: one a cut, those that lost nothing too
    acknowledged: int  #: pushes in the whole workload
    operations: int  #: that the disk was asked for: the cuts are between these
    syncs: int  #: among them; fewer than pushes, and a push returns before it is safe

    @property
    def ok(self) -> bool:
        """Nothing acknowledged was lost, and every cut left a queue that opens."""
        return not any(each.lost or each.complaint for each in self.losses)

    def of(self, *kinds: str) -> list[Loss]:
        """The cuts of these crash kinds; of all if none is named."""
        return [each for each in self.losses if not kinds or each.cut.kind in kinds]

    @property
    def at_kill(self) -> list[Loss]:
        """The cuts that were a `kill -9`."""
        return self.of(PROCESS_KILL)

    @property
    def at_power_cut(self) -> list[Loss]:
        """The cuts at which the machine went down."""
        return [each for each in self.losses if each.cut.kind != PROCESS_KILL]

    def __str__(self) -> str:
        said = [f"{loses(self.at_power_cut)} at a power cut" if self.at_power_cut else ""]
        said += [f"{loses(self.at_kill)} at kill -9" if self.at_kill else ""]
        return "; ".join(each for each in said if each)

    def frame(self) -> "pandas.DataFrame":
        """One row a crash kind: cuts, how many of them lost something, the worst of them, and the complaints."""
        import pandas

        rows = []
        for kind in dict.fromkeys(each.cut.kind for each in self.losses):
            losses = self.of(kind)
            worst = worst_of(losses)
            rows.append(
                {
                    "crash": kind,
                    "what it is": CRASH_KINDS[kind].says,
                    "cuts": len(losses),
                    "cuts with loss": sum(each.lost > 0 for each in losses),
                    "worst loss": worst.lost,
                    "of acknowledged": worst.acknowledged,
                    "complaints": sum(bool(each.complaint) for each in losses),
                }
            )
        return pandas.DataFrame(rows).set_index("crash")


def audit(
    workload: Callable[[Path], Iterable[Hashable]],
    survivors: Callable[[Path], Iterable[Hashable]],
    *,
    kinds: Sequence[str] = KINDS,
    names: str = "journalled",
    cuts: int = 200,
    seed: int = 0,
) -> Audit:
    """Does this queue keep what it acknowledged when the power fails, and when its process is killed?

        def workload(directory):
            queue = LiteQueue(directory / "queue.db")
            for number in range(100):
                queue.put(str(number))
                yield str(number)  # put has returned: from here on the job must be safe
            queue.close()

        def survivors(directory):
            queue = LiteQueue(directory / "queue.db")
            while job := queue.pop():
                yield job.data

        print(audit(workload, survivors))

    `workload` gets an empty directory, pushes into a queue there, and yields each job when its push has returned: the
    job itself, or anything that tells it from the others. Nothing is simulated in it: the library runs as it is, on
    the SQLite of the standard library, while every write, sync and delete is recorded. Then the power is cut between
    the recorded operations, and what is on the disk at that moment is laid out in a fresh directory. `survivors` gets
    that directory and gives the jobs that are in it, at best through the library itself. No cut touches a real disk;
    no root is needed.

    `kinds` are rows of CRASH_KINDS; left out, those that a healthy disk and file system can do. `names` is a row of
    NAME_MODELS; left out, new and deleted names become safe as on ext4 and xfs. `cuts` is how many are made of each
    kind: at every operation if there are fewer, else at an even sample of them and at the moments before a sync, when
    most is at stake. `seed` draws what survives of unsynced writes: the same seed, the same cuts.

    A workload should be long enough for the loss that it looks for: SQLite in WAL mode with synchronous=NORMAL syncs
    once in some 1 000 pages, so after 50 pushes it has lost at most 50.

    Files that SQLite does not write are looked for too, and are safe when os.fsync or os.fdatasync was called on them.
    Not seen are syncs by other means (`from os import fsync` is one), O_SYNC, and what another process does: such a
    queue is said to lose more than it does.

    Raises ValueError for a job that was yielded twice, for none, and for a row that is not there; RecorderUnavailable
    where SQLite's writes cannot be seen: in this Python, or because the library brings a SQLite of its own.
    """
    if not kinds:
        raise ValueError(f"kinds: expected at least one of {', '.join(CRASH_KINDS)}; got none")
    if unknown := [kind for kind in kinds if kind not in CRASH_KINDS]:
        raise ValueError(f"kinds: expected some of {', '.join(CRASH_KINDS)}; got {', '.join(map(repr, unknown))}")
    if names not in NAME_MODELS:
        raise ValueError(f"names: expected one of {', '.join(NAME_MODELS)}; got {names!r}")
    if cuts < 1:
        raise ValueError(f"cuts: expected at least 1, got {cuts}")
    with scratch_directory() as directory:
        platter, returned = recorded(directory, workload, seed)
    operations = platter.recording.operations
    losses: list[Loss] = []
    with scratch_directory() as scratch:
        for at in moments(operations, cuts):
            for kind in kinds:
                losses.append(_judge(platter, Cut(at, kind, names, seed), returned, survivors, scratch))
    syncs = sum(each.kind is Kind.SYNC for each in operations)
    return Audit(tuple(losses), len(returned), len(operations), syncs)


def loses(losses: Sequence[Loss]) -> str:
    """What these cuts come to, in words."""
    worst, losing = worst_of(losses), sum(each.lost > 0 for each in losses)
    complaints = sum(bool(each.complaint) for each in losses)
    said = (
        f"loses up to {worst.lost:,} of {worst.acknowledged:,} acknowledged pushes (in {losing / len(losses):.0%} of "
        f"{len(losses):,} cuts)"
        if worst.lost
        else f"loses nothing acknowledged ({len(losses):,} cuts)"
    )
    return f"{said}, {complaints:,} with complaints" if complaints else said


def worst_of(losses: Sequence[Loss]) -> Loss:
    """The cut that lost most."""
    return max(losses, key=lambda each: (each.lost, each.acknowledged))


def moments(operations: Sequence[Operation], cuts: int) -> list[int]:
    """Where to cut: before any operation and after the last, or so many of these moments as say most."""
    everywhere = len(operations) + 1
    if everywhere <= cuts:
        return list(range(everywhere))
    before_syncs = [at for at, each in enumerate(operations) if each.kind is Kind.SYNC]
    telling = {*_evenly(before_syncs, cuts // 2), len(operations)}
    return sorted(telling | set(_evenly(range(everywhere), cuts - len(telling))))


def _evenly(moments: Sequence[int], count: int) -> list[int]:
    """At most so many of them, the last among them."""
    if len(moments) <= count:
        return list(moments)
    return [moments[(number + 1) * len(moments) // count - 1] for number in range(count)]


def recorded(
    directory: Path, workload: Callable[[Path], Iterable[Hashable]], seed: int
) -> tuple[Platter, dict[Hashable, int]]:
    """The disk under a workload, and each job with the length of the log when its push had returned."""
    returned: dict[Hashable, int] = {}
    with Recorder(directory, seed=seed) as recorder, OtherFiles(recorder) as others:
        for job in workload(directory):
            if job in returned:
                raise ValueError(f"cannot tell the jobs of this workload apart: it yielded {job!r} twice")
            others.look()
            returned[job] = len(recorder)
        others.look()
    if not returned:
        raise ValueError("this workload yielded nothing: expected each job, when its push has returned")
    return Platter(recorder.recording), returned


def _judge(
    platter: Platter,
    cut: Cut,
    returned: dict[Hashable, int],
    survivors: Callable[[Path], Iterable[Hashable]],
    scratch: Path,
) -> Loss:
    promised = {job for job, at in returned.items() if at <= cut.at}
    with laid_out(platter, cut, scratch) as image:
        try:
            found = Counter(survivors(image))
        except Exception as error:  # noqa: BLE001  # whatever a foreign library says of a directory it cannot open
            return Loss(cut, len(promised), len(promised), f"{type(error).__name__}: {error}")
    strange = [job for job, count in found.items() if job not in returned or count > 1]
    complaint = f"holds {strange[0]!r}, which was never pushed or is there twice" if strange else ""
    return Loss(cut, len(promised), len(promised - found.keys()), complaint)
