"""One worker process, which serves one queue: ``python -m aegis_worker.process.serve QUEUE [NUMBER]``.

``NUMBER`` distinguishes the processes of one queue in one replica. Exit codes: 0 if it stopped after a signal, 2 if a
setting or Redis has to be fixed first (one line says what), any other code after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import uvloop
from redis.exceptions import RedisError

from aegis_worker import current_job
from aegis_worker.process import log
from aegis_worker.process.supervisor import NOT_STARTED
from aegis_worker.project import Project, current
from aegis_worker.redis.pool import check, explain
from aegis_worker.settings import IN_CONTAINER

STUCK_EXIT_CODE = 71  #: after a stop, if jobs or their threads did not end
THREADS_END_S = 0.5  #: time for the threads of jobs to end, after their jobs have ended or are back in the queue
_THREADS = "jobs"
_PR_SET_PDEATHSIG = 1


async def serve(project: Project, queue: str, number: int) -> None:
    """Serve a queue until a signal. Raises the error that prevents the start."""
    asyncio.get_running_loop().set_default_executor(threads := ThreadPoolExecutor(thread_name_prefix=_THREADS))
    folder = os.environ.get("WORKER_BEAT_DIR")
    # Outside a container several replicas share the host's name.
    host = socket.gethostname() if IN_CONTAINER else f"{socket.gethostname()}-{os.getppid()}"
    worker = project.make_worker(
        queue,
        replica=host if number == 1 else f"{host}-{number}",
        on_beat=Path(folder, f"{queue}-{number}").touch if folder else None,
    )
    try:
        await check(worker.pool)
        # A signal cancels `startup`, or a call that waits for Redis after the drain. This is not an error.
        with contextlib.suppress(asyncio.CancelledError):
            await worker.async_run()
    finally:
        await worker.close()
    # asyncio would wait for jobs that ignore their cancellation, and for threads, which cannot be cancelled.
    threads.shutdown(wait=False, cancel_futures=True)
    if worker.tasks or not await _all_ended(_THREADS, THREADS_END_S):
        logging.getLogger(__name__).error("jobs or their threads do not end: the process exits without them")
        logging.shutdown()
        os._exit(STUCK_EXIT_CODE)


async def _all_ended(threads: str, within_s: float) -> bool:
    """Wait until all threads with this prefix in their names have ended. Return whether they have."""
    until = monotonic() + within_s
    while any(thread.name.startswith(threads) for thread in threading.enumerate()):
        if monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True


def main(queue: str, number: str = "1") -> int:
    """Run the process until it ends. Return its exit code."""
    _end_with_parent()

    def fields() -> dict[str, object]:
        job = current_job.get()
        if job is None:
            return {"queue": queue}
        return {"job_id": job.job_id, "queue": job.queue, "task": job.task, "try": job.job_try}

    project = current()
    log.setup(project.config, fields)
    try:
        uvloop.run(serve(project, queue, int(number)))
    except (RedisError, OSError, ImportError, ValueError) as error:
        logging.getLogger(__name__).error("not started: %s", explain(error, project.config))
        return NOT_STARTED
    return 0


def _end_with_parent() -> None:
    """Make the kernel send SIGTERM when the supervisor is killed: a worker without a supervisor must not go on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
