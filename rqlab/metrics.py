"""The numbers of a directory: how many jobs are where, how old the backlog is, how long things take.

All of it is kept as counters with the jobs, so reading it does not get slower with the number of finished jobs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rqlab.engine import BUCKETS, LISTED, Engine
from rqlab.job import State

#: The running totals, since the directory was made: counter -> what it counts.
TOTALS: dict[str, str] = {
    "pushed": "jobs pushed",
    "completed": "runs that succeeded",
    "failed": "runs that raised an error",
    "stalled": "runs whose lease ran out without a heartbeat",
    "timed_out": "runs that took longer than their timeout",
    "retried": "failed, stalled and timed out runs that will be tried again",
    "dead_lettered": "jobs that went to the dead-letter queue: attempts used up, or expired",
    "expired": "jobs whose ttl passed before they started",
    "released": "runs given up at a shutdown, no attempt charged",
    "snoozed": "runs that their handler put off, no attempt charged",
    "cancelled": "jobs cancelled",
    "requeued": "jobs put back from the dead-letter queue or from cancelled",
    "purged": "finished jobs removed by a purge or by retention",
}


#: What is at risk, where the mode makes writes safe later: name -> what it is.
AT_RISK: dict[str, str] = {
    "unsafe_writes": "acknowledged writes that a crash would lose now",
    "unsafe_seconds": "how long the oldest of them has been unsafe, at most",
}


class Metrics:
    """The newest reading; housekeeping refreshes it each tick, so a scrape never waits for a busy store.

    `at_risk(now)` gives the values of AT_RISK, or nothing in a mode that puts nothing at risk.
    """

    def __init__(self, engine: Engine, at_risk: Callable[[int], Mapping[str, float]] = lambda now: {}) -> None:
        self._engine = engine
        self._at_risk = at_risk
        self.latest: dict[str, Any] | None = None
        self._reads: dict[str, tuple[Mapping[str, int], dict[str, Any]]] = {}  #: by queue: counters, and their reading

    def refresh(self, now: int) -> dict[str, Any]:
        """Read everything: {"at": ms, "queues": {name: {"jobs", "oldest_waiting_seconds", totals, "wait", "run"}}}.

        With the names of AT_RISK beside "at", where writes become safe later.
        """
        counted = self._engine.counters()
        reads = {queue: (counters, self._reading(queue, counters, now)) for queue, counters in counted.items()}
        self._reads = reads
        queues = {queue: read for queue, (_, read) in reads.items()}
        self.latest = {"at": now, **self._at_risk(now), "queues": queues}
        return self.latest

    def _reading(self, queue: str, counters: Mapping[str, int], now: int) -> dict[str, Any]:
        """The reading of before, where nothing has changed and no job grows older: most queues of many are idle."""
        before = self._reads.get(queue)
        if before is not None and before[0] == counters and not counters.get(State.WAITING):
            return before[1]
        return self._read(queue, counters, now)

    def _read(self, queue: str, counters: Mapping[str, int], now: int) -> dict[str, Any]:
        oldest_at = self._engine.oldest_waiting_at(queue) if counters.get(State.WAITING) else None
        return {
            "jobs": {str(state): counters.get(state, 0) for state in LISTED},
            "oldest_waiting_seconds": None if oldest_at is None else max(now - oldest_at, 0) / 1000,
            **{total: counters.get(f"{total}_total", 0) for total in TOTALS},
            "wait": _histogram(counters, "wait"),
            "run": _histogram(counters, "run"),
        }


class PrometheusCollector:
    """A custom collector for prometheus_client: `REGISTRY.register(rq.prometheus())`. `read()` gives a reading.

    Raises ImportError with the install line where prometheus_client is missing.
    """

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        try:
            import prometheus_client  # noqa: F401  # an extra: say so now, not at the first scrape
        except ImportError:
            raise ImportError('Prometheus metrics need prometheus_client: pip install "rqlab[prometheus]"') from None
        self._read = read

    def collect(self) -> Iterator[Any]:
        """One family for each metric, labelled by queue; called by the registry at every scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        latest = self._read()
        queues: dict[str, Any] = latest["queues"]
        jobs = GaugeMetricFamily("rqlab_jobs", "jobs in each state", labels=["queue", "state"])
        oldest = GaugeMetricFamily(
            "rqlab_oldest_waiting_seconds", "how long the oldest waiting job has waited", labels=["queue"]
        )
        for queue, read in queues.items():
            for state, count in read["jobs"].items():
                jobs.add_metric([queue, state], count)
            oldest.add_metric([queue], read["oldest_waiting_seconds"] or 0.0)
        yield from (jobs, oldest)
        for name, meaning in AT_RISK.items():
            if name in latest:
                yield GaugeMetricFamily(f"rqlab_{name}", meaning, latest[name])
        for total, meaning in TOTALS.items():
            family = CounterMetricFamily(f"rqlab_{total}", meaning, labels=["queue"])
            for queue, read in queues.items():
                family.add_metric([queue], read[total])
            yield family
        for what, meaning in (("wait", "from due to pulled"), ("run", "from pulled to ended")):
            histogram = HistogramMetricFamily(f"rqlab_{what}_seconds", meaning, labels=["queue"])
            for queue, read in queues.items():
                buckets = [(bound, count) for bound, count in read[what]["buckets"].items()]
                histogram.add_metric([queue], buckets, read[what]["sum_seconds"])
            yield histogram


def _histogram(counters: Mapping[str, int], what: str) -> dict[str, Any]:
    """Cumulative counts by upper bound in seconds, as Prometheus has them; the last bound is +Inf."""
    total, buckets = 0, {}
    for index, bound in enumerate([*(f"{bound:g}" for bound in BUCKETS), "+Inf"]):
        total += counters.get(f"{what}_bucket_{index}", 0)
        buckets[bound] = total
    return {"count": total, "sum_seconds": counters.get(f"{what}_ms_total", 0) / 1000, "buckets": buckets}
