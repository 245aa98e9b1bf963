"""Names of the keys in Redis: arq's own, which stock producers and workers share, and ours beside them.

A script in ``lua/`` gets the constants of this module that it names in a line ``-- keys: JOB, RETRY``.
"""

from arq.constants import (
    abort_jobs_ss,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

QUEUE_PREFIX = "arq:queue:"
ABORT = abort_jobs_ss  #: sorted set: ids of jobs to abort, by the time of the request
JOB = job_key_prefix  #: + id, string: the payload
IN_PROGRESS = in_progress_key_prefix  #: + id, string: exists while the job runs; ours hold the token of the lease
RESULT = result_key_prefix  #: + id, string: the result
RETRY = retry_key_prefix  #: + id, integer: how many tries have ended; one that a stock worker has begun counts too

RAISED = "worker:raised:"  #: + id, string: what the last try that was counted has raised

# Fields of the hash of dead letters.
LETTER_FIELD = "letter:"  #: + id: what the letter says of the job's end, JSON
PAYLOAD_FIELD = "payload:"  #: + id: the job's payload
BYTES_FIELD = "bytes"  #: how many bytes all letters and payloads have


def job_id(raw: bytes) -> str:
    """A job's id as text; one that is not UTF-8 has escapes in it, ``\\xff`` say, and goes by it once claimed."""
    return raw.decode(errors="backslashreplace")


def short_name(queue_name: str) -> str:
    """``arq:queue:media`` → ``media``; a queue named otherwise keeps its whole name."""
    return queue_name.removeprefix(QUEUE_PREFIX)


def health(queue_name: str, replica: str) -> str:
    """String: the replica's last health record, JSON; it expires when the replica is gone."""
    return f"worker:health:{short_name(queue_name)}:{replica}"


def replicas(queue_name: str) -> str:
    """Sorted set: the queue's replicas, by the time in ms at which each was last seen."""
    return f"worker:replicas:{short_name(queue_name)}"


def paused(queue_name: str) -> str:
    """String: exists while no worker may claim from the queue."""
    return f"worker:paused:{short_name(queue_name)}"


def leases(queue_name: str) -> str:
    """Sorted set: jobs that run, by the time in ms at which their lease lapses."""
    return f"worker:leases:{short_name(queue_name)}"


def last_active(queue_name: str) -> str:
    """Number: when somebody last claimed or renewed, ms; a time in the future is that until which nobody may claim."""
    return f"worker:seen:{short_name(queue_name)}"


def fence(worker: str) -> str:
    """Integer: the lowest number that a claim of this worker may have."""
    return f"worker:fence:{worker}"


def bell(queue_name: str) -> str:
    """Sorted set: has a member when there are jobs to claim, until one of the workers that wait for it takes it."""
    return f"worker:bell:{short_name(queue_name)}"


def own_bell(worker: str) -> str:
    """Sorted set: has a member when this worker is to poll."""
    return f"worker:rouse:{worker}"


def probe(worker: str) -> str:
    """Sorted set: a worker writes it, to see whether Redis notifies it of that."""
    return f"worker:probe:{worker}"


def rate_window(queue_name: str) -> str:
    """List: when the jobs of the last period of the rate limit were claimed, ms."""
    return f"worker:begun:{short_name(queue_name)}"


def unique(queue_name: str, key: str) -> str:
    """String: the id of the job that holds a unique key, for as long as that job's payload is there."""
    return f"worker:unique:{short_name(queue_name)}:{key}"


def ticks(queue_name: str) -> str:
    """Hash: the last time in ms for which each cron job was enqueued."""
    return f"worker:ticks:{short_name(queue_name)}"


def started(queue_name: str, cron: str) -> str:
    """Set: the replicas whose start a cron job's ``run_at_startup`` has answered already."""
    return f"worker:started:{short_name(queue_name)}:{cron}"


def dead(queue_name: str) -> str:
    """Sorted set: ids of the queue's dead letters, by the time in ms of death."""
    return f"worker:dead:{short_name(queue_name)}"


def letters(queue_name: str) -> str:
    """Hash: the queue's dead letters, with the fields above."""
    return f"worker:letters:{short_name(queue_name)}"
