"""A producer on the host: a job every few milliseconds, each until Redis has taken it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from arq.connections import RedisSettings, create_pool

from aegis_worker.payload import Serializer
from redis import Redis
from tests.stack.conftest import Stack

QUEUE = "arq:queue:load_test"


@dataclass
class Sent:
    """The ids of jobs that Redis has taken, and the longest time in seconds between two of them."""

    ids: list[str] = field(default_factory=list)
    longest_gap: float = 0


@contextmanager
def sending(stack: Stack, name: str, every_s: float) -> Iterator[Sent]:
    """Send jobs that hash for a few milliseconds, while the block runs."""
    sent, stop = Sent(), threading.Event()
    settings = RedisSettings(port=stack.port, username="producer", password=password(stack), conn_retries=0)

    async def send() -> None:
        pool = await create_pool(settings, job_serializer=Serializer("msgpack").dumps)
        last = time.monotonic()
        while not stop.is_set():
            job_id = f"{name}-{len(sent.ids)}"
            try:
                await pool.enqueue_job("light_cpu_task", 10_000, _job_id=job_id, _queue_name=QUEUE)
            except Exception:  # it is told anew, as the same job
                await asyncio.sleep(every_s)
                continue
            sent.ids.append(job_id)
            now = time.monotonic()
            sent.longest_gap, last = max(sent.longest_gap, now - last), now
            await asyncio.sleep(every_s)
        await pool.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(send()))
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join(30)


def ends(stack: Stack, ids: list[str]) -> set[tuple[bool, int]]:
    """How jobs have ended: whether they were successful, and the number of tries."""
    with Redis(port=stack.port, username="producer", password=password(stack)) as client:
        results = [Serializer("msgpack").loads(client.get(f"arq:result:{job_id}")) for job_id in ids]
    return {(result["s"], result["t"]) for result in results}


def password(stack: Stack) -> str:
    return (stack.folder / "secrets" / stack.env / "redis_producer_password").read_text()
