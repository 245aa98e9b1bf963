"""A steady load on a stack, from a container of its own, and the account of what became of each job.

The task that it calls writes down when it begins and when it ends; it and its queue are edited into the copy of the
checkout before the stack is made.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

TASK = '''
import asyncio
import time


async def recorded_task(ctx, name, seconds):
    """Write down when it begins and ends."""
    await ctx["redis"].rpush(f"app:runs:{name}", f"begun {time.time()}")
    await asyncio.sleep(seconds)
    await ctx["redis"].rpush(f"app:runs:{name}", f"ended {time.time()}")
    return name
'''

#: Until it is asked to end, jobs of 0 to 2 s, evenly; then it waits for them all, and prints the account.
LOAD = """
import asyncio, json, os, random, signal, time
from arq import create_pool
from app.core.config import settings

RATE, STEP_S, QUEUE, LOAD = {rate}, 0.05, "arq:queue:load_test", os.urandom(4).hex()

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
    pool = await create_pool(settings.redis_settings, job_serializer=settings.serializer.dumps)
    rng, jobs, refused = random.Random(1), {{}}, 0
    print("ready", flush=True)
    due = time.monotonic()
    while not stop.is_set():
        for _ in range(round(RATE * STEP_S)):
            seconds = rng.choice([0, 0, 0, 0, 0, 0.05, 0.05, 0.2, 0.5, 2])
            number = len(jobs) + refused
            try:
                names = dict(_job_id=f"{{LOAD}}-{{number}}", _queue_name=QUEUE)
                job = await pool.enqueue_job("recorded_task", names["_job_id"], seconds, **names)
            except Exception:
                job = None
            if job:
                jobs[number] = (time.time(), seconds)
            else:  # arq returns None where it lost its connection
                refused += 1
                await asyncio.sleep(0.1)
        due += STEP_S
        await asyncio.sleep(max(0, due - time.monotonic()))
    for _ in range(600):
        if not await pool.zcard(QUEUE):
            break
        await asyncio.sleep(0.1)
    wrong, latest, again = [], (0, None), 0
    for number, (enqueued, seconds) in jobs.items():
        runs = [line.decode().split() for line in await pool.lrange(f"app:runs:{{LOAD}}-{{number}}", 0, -1)]
        begun = [float(at) for what, at in runs if what == "begun"]
        ended = [float(at) for what, at in runs if what == "ended"]
        again += max(0, len(begun) - 1)
        if not ended or not await pool.exists(f"arq:result:{{LOAD}}-{{number}}"):
            wrong.append((number, seconds, enqueued, runs))
        else:
            waited, ran = begun[0] - enqueued, ended[0] - begun[0]
            latest = max(latest, (waited + ran - seconds, [number, seconds, waited, ran]))
    found = dict(jobs=len(jobs), refused=refused, again=again, wrong=wrong[:5], lost=len(wrong))
    print(json.dumps(found | dict(latest=latest[0], latest_job=latest[1])))

asyncio.run(main())
"""


@dataclass
class Account:
    """What became of the jobs of a load."""

    jobs: int = 0
    refused: int = 0  #: by Redis, when they were enqueued
    again: int = 0  #: runs beyond one for each job
    latest: float = 0  #: seconds, the most that a job ended later than it would have alone
    latest_job: list[float] | None = None  #: its number, its length, how long it waited, how long it ran
    lost: int = 0  #: jobs without an end or a result
    wrong: tuple[object, ...] = ()  #: some of these


def edit_in(folder: Path) -> None:
    """Give the copy of a checkout the task, and its queue."""
    (folder / "app/components/worker/tasks/recorded.py").write_text(TASK)
    queue = folder / "app/components/worker/queues/load_test.py"
    text = queue.read_text()
    text = text.replace("functions = [", "functions = [recorded_task, ").replace(
        "\n\n\n@configured", "\nfrom app.components.worker.tasks.recorded import recorded_task\n\n\n@configured"
    )
    queue.write_text(text)


@contextmanager
def load(stack: Stack, rate: int = 200) -> Iterator[Account]:
    """Have jobs come in while the block runs; afterwards the account is filled in."""
    command = ["run", "--detach", "--no-deps", "--entrypoint", "python", "worker", "-c", LOAD.format(rate=rate)]
    name = stack.compose(*command).strip().splitlines()[-1]
    account = Account()
    try:
        _wait_for(name, "ready", within_s=30)
        yield account
        subprocess.run(["docker", "kill", "--signal", "USR1", name], check=True, capture_output=True)
        subprocess.run(["docker", "wait", name], check=True, capture_output=True, timeout=120)
        account.__init__(**json.loads(_log(name).splitlines()[-1]))
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


def _log(container: str) -> str:
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _wait_for(container: str, text: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while text not in _log(container):
        assert time.monotonic() < deadline, _log(container)
        time.sleep(0.2)
