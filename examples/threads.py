"""Producers and a worker as plain threads of one program; the worker stops when its work is done.

python examples/threads.py [DIRECTORY]
"""

import sys
import threading

import rqlab

PRODUCERS, EACH = 4, 25


def resize(job: rqlab.Job) -> str:
    return f"{job.data['image']}-small"


def produce(rq: rqlab.Queues, number: int) -> None:
    for index in range(EACH):
        rq.push("images", "resize", {"image": f"image-{number}-{index}"})


def main(directory: str) -> None:
    with rqlab.open(directory) as rq:
        done = threading.Event()
        ended = 0

        def count(change: rqlab.Change) -> None:
            nonlocal ended
            ended += change.event is rqlab.Event.ACK
            if ended == PRODUCERS * EACH:
                done.set()

        unsubscribe = rq.on_change(count)
        worker = threading.Thread(target=rq.run_worker, args=("images", resize), kwargs={"shutdown": done})
        worker.start()
        producers = [threading.Thread(target=produce, args=(rq, number)) for number in range(PRODUCERS)]
        for thread in producers:
            thread.start()
        for thread in [*producers, worker]:
            thread.join()
        unsubscribe()
        print(rq.counts("images"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "jobs")
