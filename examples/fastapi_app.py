"""A web application whose background jobs survive `kill -9`: no broker, no second process to run.

    pip install ".[web]"
    uvicorn examples.fastapi_app:app
    curl -X POST "localhost:8000/emails?to=ada@example.org"

The worker lives as long as the application. At SIGTERM uvicorn ends the lifespan, and the runs in flight finish first.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException

import rqlab

DIRECTORY = os.environ.get("RQLAB_DIRECTORY", "jobs")


async def send(job: rqlab.Job, ctx: rqlab.AsyncContext) -> dict[str, str]:
    """Pretend to send an email, in two steps."""
    await ctx.progress(50, f"connecting for {job.data['to']}")
    await asyncio.sleep(0.1)
    return {"sent_to": job.data["to"]}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with rqlab.open(DIRECTORY) as rq:
        app.state.rq = rq
        async with rq.worker("emails", send, concurrency=10, grace=20):
            yield


app = FastAPI(lifespan=lifespan)


@app.post("/emails", status_code=202)
def push(to: str) -> dict[str, str]:
    """Accept an email. When this answers, the job is on the disk."""
    return {"id": app.state.rq.push("emails", "send", {"to": to})}


@app.get("/emails/{job_id}")
def show(job_id: str) -> dict[str, Any]:
    """What has become of it."""
    try:
        job = app.state.rq.get(job_id)
    except rqlab.JobNotFound as error:
        raise HTTPException(404, str(error)) from error
    return {"state": job.state, "progress": job.progress, "result": job.result}
