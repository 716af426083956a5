"""What a measurement found: one tidy DataFrame with the machine in its attrs, its table, its picture, its file.

A wrapper, not a DataFrame of a new kind: a DataFrame's own `plot` draws something else, and pandas drops attrs in many
an operation. `frame` is an ordinary one, for everything that pandas can do.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab.charts.chart import Chart
from rqlab.errors import ValidationError
from rqlab.files import write_whole

if TYPE_CHECKING:
    import pandas

FORMAT = 1  # of the file; a higher number is refused

#: The columns of the frame and their types: one row a (mode, callers, repeat).
COLUMNS: dict[str, str] = {
    "mode": "str",  #: a row of MODES
    "callers": "int",  #: threads that push at once
    "repeat": "int",  #: counted from 1
    "push_per_second": "float",
    "cycles_per_second": "float",  #: jobs pushed, pulled and acked, by each caller in turn
    "push_p50_seconds": "float",  #: of one push, by its caller's clock
    "push_p99_seconds": "float",
    "fsyncs_per_job": "float",  #: of a job's whole life, checkpoints included; nan if nothing could be recorded
    "bytes_per_job": "float",  #: written, the same
    "lost_jobs_kill": "float",  #: acknowledged pushes that were gone after kill -9
    "lost_jobs_power_cut": "float",  #: at the worst of the power cuts; nan if nothing could be recorded
    "loss_window_seconds": "float",  #: age of the oldest lost push at any of those crashes; 0 nothing, inf everything
    "promised": "str",  #: what the mode's row in MODES allows to be lost at a crash, in short
    "acknowledged_jobs_kill": "float",  #: so many pushes had returned before the kill
    "acknowledged_jobs_power_cut": "float",  #: and before the worst power cut
    "mean_lost_jobs_power_cut": "float",  #: over all power cuts of this row
    "promise_held": "bool",  #: no crash lost more than that
}
Row = dict[str, Any]


class Spread(NamedTuple):
    """The median of the repeats, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        return cls(_median(figures), min(figures), max(figures))


class Measurement:
    """What each durability mode costs here, and what it loses: what `rqlab.measure()` returns.

    In a notebook it shows itself as two tables; `plot()` draws throughput against loss window.
    """

    def __init__(self, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
        self._rows = [{name: row[name] for name in COLUMNS} for row in rows]
        self.machine: dict[str, Any] = dict(machine)  #: where, when and how it was measured; the frame's attrs too

    @property
    def frame(self) -> "pandas.DataFrame":
        """One row a (mode, callers, repeat), units last in the columns' names; `attrs` say what it was measured on."""
        import pandas

        frame = pandas.DataFrame(self._rows, columns=list(COLUMNS)).astype(COLUMNS)
        frame["mode"] = frame["mode"].astype(object)
        frame["promised"] = frame["promised"].astype(object)
        frame.attrs = dict(self.machine)
        return frame

    @property
    def is_complete(self) -> bool:
        """False if the measurement was interrupted, and this is what there was by then."""
        return bool(self.machine.get("is_complete", True))

    @property
    def broken(self) -> list[Row]:
        """The rows in which a crash lost more than the mode had promised. Empty, unless you have found a bug."""
        return [dict(row) for row in self._rows if not row["promise_held"]]

    def plot(self, **how: Any) -> Chart:
        """Throughput against loss window, one point a mode: `rqlab.charts.tradeoff` of the frame, and its arguments."""
        from rqlab.charts import tradeoff

        return tradeoff(self.frame, **how)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one JSON file, which `Measurement.load` reads. A crash leaves the old one or this."""
        write_whole(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Measurement":
        """Read what `save` wrote, or what `rqlab measure --json` printed. ValidationError if it is no such file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValidationError as error:
            raise ValidationError(f"{os.fspath(path)}: {error}") from None

    def to_json(self) -> str:
        """The document that `save` writes. JSON has neither inf nor nan: they are the text "inf" and null."""
        rows = [{name: _in_json(value) for name, value in row.items()} for row in self._rows]
        return json.dumps({"format": FORMAT, "machine": self.machine, "rows": rows}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        """The measurement in such a document."""
        try:
            document = json.loads(text)
            if document["format"] > FORMAT:
                raise ValidationError(
                    f"expected a measurement of format {FORMAT} or less; found {document['format']}: "
                    "a newer rqlab wrote it"
                )
            rows = [{name: _out_of_json(row[name], kind) for name, kind in COLUMNS.items()} for row in document["rows"]]
            return cls(rows, document["machine"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ValidationError):
                raise
            raise ValidationError(
                f"expected a measurement, as Measurement.save writes it; found something else ({error!r})"
            ) from None

    def spread(self, column: str, mode: str, callers: int) -> Spread | None:
        """Median, lowest and highest of a column of numbers over the repeats; None if that was not measured."""
        rows = [row for row in self._rows if (row["mode"], row["callers"]) == (mode, callers)]
        known = [row[column] for row in rows if not math.isnan(row[column])]
        return Spread.of(known) if known else None

    def tables(self) -> tuple["Table", "Table"]:
        """What it shows: speed, and losses. Medians of the repeats with the lowest and the highest."""
        groups = list(self._groups())
        return (
            Table(SPEED, [[mode, str(callers), *_speed(rows)] for mode, callers, rows in groups]),
            Table(LOSSES, [[mode, str(callers), *_losses(rows)] for mode, callers, rows in groups]),
        )

    def notes(self) -> list[str]:
        """What one must know to read the figures: the machine, the settings, and what to beware of."""
        repeats = max((row["repeat"] for row in self._rows), default=0)
        return list(_notes(self.machine, repeats, self.broken))

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Measurement) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        speed, losses = self.tables()
        return "\n".join([speed.text(), "", losses.text(), "", *self.notes()])

    def _repr_html_(self) -> str:
        import html

        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes())
        return "".join(table.html() for table in self.tables()) + f"<ul>{notes}</ul>"

    def _groups(self) -> Iterator[tuple[str, int, list[Row]]]:
        keys = dict.fromkeys((row["mode"], row["callers"]) for row in self._rows)
        order = list(dict.fromkeys(mode for mode, _ in keys))
        for mode, callers in sorted(keys, key=lambda key: (order.index(key[0]), key[1])):
            yield mode, callers, [row for row in self._rows if (row["mode"], row["callers"]) == (mode, callers)]


SPEED = ("mode", "callers", "push/s", "cycles/s", "push p50, ms", "push p99, ms", "fsyncs/job", "KB/job")
LOSSES = ("mode", "callers", "lost at kill -9", "lost at a power cut", "loss window", "promised: at most", "held")
LEFT = ("mode", "promised: at most", "held")  # columns of words


class Table(NamedTuple):
    """A small table that can be written as text and as HTML."""

    head: tuple[str, ...]
    rows: list[list[str]]

    def text(self) -> str:
        lines = [list(self.head), *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        is_left = [name in LEFT for name in self.head]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(line, widths, is_left, strict=True)
            ).rstrip()
            for line in lines
        )

    def html(self) -> str:
        import html

        def line(cells: Sequence[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.head, 'th')}</thead><tbody>{body}</tbody></table>"


def _speed(rows: list[Row]) -> list[str]:
    p50, p99 = ([row[name] * 1000 for row in rows] for name in ("push_p50_seconds", "push_p99_seconds"))
    return [
        _ranged([row["push_per_second"] for row in rows], count),
        _ranged([row["cycles_per_second"] for row in rows], count),
        _middle(p50),
        _ranged(p99, _digits),
        _middle([row["fsyncs_per_job"] for row in rows]),
        _middle([row["bytes_per_job"] / 1000 for row in rows]),
    ]


def _losses(rows: list[Row]) -> list[str]:
    """The worst of the repeats: a crash that lost nothing makes the other no better."""
    window = max((row["loss_window_seconds"] for row in rows), key=lambda each: -1 if math.isnan(each) else each)
    return [
        _lost(rows, "kill"),
        _lost(rows, "power_cut"),
        _window(window),
        rows[0]["promised"],
        "yes" if all(row["promise_held"] for row in rows) else "NO",
    ]


def _lost(rows: list[Row], crash: str) -> str:
    known = [row for row in rows if not math.isnan(row[f"lost_jobs_{crash}"])]
    if not known:
        return "not measured"
    worst = max(known, key=lambda row: (row[f"lost_jobs_{crash}"], row[f"acknowledged_jobs_{crash}"]))
    lost, acknowledged = worst[f"lost_jobs_{crash}"], worst[f"acknowledged_jobs_{crash}"]
    return f"{lost:,.0f} of {acknowledged:,.0f}".replace(",", " ")


def _window(seconds: float) -> str:
    if math.isnan(seconds):
        return "not measured"
    if seconds == math.inf:
        return "everything"
    return "nothing" if seconds == 0 else f"{_digits(seconds)} s" if seconds >= 1 else f"{_digits(seconds * 1000)} ms"


def _ranged(figures: list[float], shown: Any) -> str:
    known = [figure for figure in figures if not math.isnan(figure)]
    if not known:
        return "–"
    spread = Spread.of(known)
    if spread.low == spread.high:
        return str(shown(spread.median))
    return f"{shown(spread.median)} ({shown(spread.low)}–{shown(spread.high)})"


def _middle(figures: list[float]) -> str:
    known = [figure for figure in figures if not math.isnan(figure)]
    return _digits(_median(known)) if known else "–"


def count(figure: float) -> str:
    """13 200: three digits are all that a repeat gives again."""
    if figure >= 1000:
        figure = round(figure, 2 - math.floor(math.log10(figure)))
    return f"{figure:,.0f}".replace(",", " ")


def _digits(figure: float) -> str:
    """Two digits that count, never as 1e-05."""
    if figure == 0:
        return "0"
    figure = float(f"{figure:.1e}")
    return f"{figure:,.{max(1 - math.floor(math.log10(figure)), 0)}f}".replace(",", " ")


def _notes(machine: Mapping[str, Any], repeats: int, broken: list[Row]) -> Iterator[str]:
    settings = machine.get("settings", {})
    spread = "One repeat, so no spread" if repeats == 1 else f"Median of {repeats} repeats (lowest–highest)"
    yield f"{spread}; losses are the worst of {settings.get('cuts')} power cuts and one kill -9 a repeat."
    yield (
        f"{machine.get('platform')}, {machine.get('cores')} cores, Python {machine.get('python')}, "
        f"SQLite {machine.get('sqlite')}, rqlab {machine.get('rqlab')}, {machine.get('measured_at')}."
    )
    median, low, high = (machine.get(f"fsync_{which}_seconds", math.nan) * 1000 for which in ("median", "low", "high"))
    disk = machine.get("file_system") or "a file system of unknown type"
    yield f"Disk: {disk}; an fsync took {_digits(median)} ms ({_digits(low)}–{_digits(high)}) meanwhile."
    if machine.get("is_in_memory"):
        yield (
            f"BEWARE: {disk} is in memory, where an fsync costs nothing and a power cut loses all: durable looks free. "
            "Measure on a disk: directory=, or --directory."
        )
    if machine.get("recorder"):
        yield f"Power cuts, fsyncs and bytes were not measured: {machine['recorder']}"
    if not machine.get("is_complete", True):
        yield "Interrupted: this is what had been measured by then."
    for row in broken:
        yield (
            f"PROMISE BROKEN: {row['mode']}, {row['callers']} callers, repeat {row['repeat']}: promised to lose at "
            f"most {row['promised']}; lost {_lost([row], 'kill')} at kill -9, {_lost([row], 'power_cut')} at a power "
            f"cut, window {_window(row['loss_window_seconds'])}. Please report it."
        )


def _median(figures: Sequence[float]) -> float:
    """`statistics` would cost every `import rqlab` a millisecond, `html` another."""
    ordered = sorted(figures)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _in_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value


def _out_of_json(value: Any, kind: str) -> Any:
    """The value of a column: text, a number, null for nan, "inf"."""
    if kind == "float":
        return math.nan if value is None else float(value)
    expected = {"str": str, "int": int, "bool": bool}[kind]
    if type(value) is not expected:
        raise TypeError(f"expected {kind}, found {value!r}")
    return value
