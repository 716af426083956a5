"""Histories made by hand and by a small seeded world, for the tests of pictures and panels."""

import heapq
import random
from types import SimpleNamespace
from typing import Any

import pandas


def result(
    attempts: list[tuple[Any, ...]],
    faults: list[tuple[float, str, str]] = (),  # type: ignore[assignment]
    events: list[dict[str, Any]] = (),  # type: ignore[assignment]
    jobs: list[dict[str, Any]] | None = None,
    seed: int = 7,
) -> Any:
    """Attempts are (job, delivery, worker, started, ended, outcome)."""
    columns = ["job", "delivery", "worker", "started", "ended", "outcome"]
    return SimpleNamespace(
        attempts=pandas.DataFrame(attempts, columns=columns),
        faults=pandas.DataFrame(list(faults), columns=["at", "kind", "target"]),
        events=pandas.DataFrame(list(events), columns=["at", "kind", "job", "worker", "cause", "detail"]),
        jobs=None if jobs is None else pandas.DataFrame(jobs),
        seed=seed,
    )


def world(jobs: int, seed: int = 7, workers: int = 3, concurrency: int = 1) -> Any:
    """A history with retries, a worker crash, a power cut, a lost job and one in the DLQ: plausible, not simulated."""
    draw = random.Random(seed)
    slots = [[0.0, f"host:77:w{worker}"] for worker in range(workers) for _ in range(concurrency)]
    crash = 1.0 + jobs * 0.08
    cut = crash + jobs * 0.12
    faults = [(crash, "worker crash", "host:77:w1"), (cut, "power cut", "")]
    events: list[dict[str, Any]] = [{"at": cut + 0.3, "kind": "recovered"}]
    attempts = []
    ends: dict[int, tuple[str, float, int]] = {}
    due = [(number * 0.15, number, 1) for number in range(jobs)]
    heapq.heapify(due)
    while due:
        at, number, delivery = heapq.heappop(due)
        slot = min(slots)
        start = max(at, slot[0])
        end = start + draw.uniform(0.2, 1.4)
        outcome = "completed" if draw.random() < 0.7 else draw.choice(["failed", "timed_out", "released"])
        outcome = "failed" if number == 1 else outcome
        for when, _, target in faults:
            if start < when < end and target in ("", slot[1]):
                outcome, end = "stalled", when + 2
        job = f"018f0000-0000-7000-8000-{number:012}"
        beats = [start + 0.33 * n for n in range(1, 4) if start + 0.33 * n < end]
        events += [{"at": beat, "kind": "heartbeat", "job": job, "worker": slot[1]} for beat in beats]
        slot[0] = end
        attempts.append((job, delivery, slot[1], start, end, outcome))
        if outcome == "completed" or (outcome != "released" and delivery >= 3):
            ends[number] = ("completed" if outcome == "completed" else "dlq", end, delivery)
        else:
            heapq.heappush(due, (end + (0 if outcome == "released" else 2 ** (delivery - 1)), number, delivery + 1))
    rows = [
        {
            "id": f"018f0000-0000-7000-8000-{number:012}", "queue": "emails", "state": ends[number][0],
            "attempt": ends[number][2] - 1, "deliveries": ends[number][2], "pushed": number * 0.15,
            "finished": ends[number][1], "lost": number == jobs // 2,
        }
        for number in range(jobs)
    ]  # fmt: skip
    return result(attempts, faults, events, rows, seed)
