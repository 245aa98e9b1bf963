"""When a failing job is tried again, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest
from arq import Retry
from arq.worker import JobExecutionFailed, RetryJob

from aegis_worker.queue.policies import Backoff, RateLimit
from aegis_worker.worker.outcome import Ended, Requeued, decide

BACKOFF = Backoff(base=2, limit=60)


def test_the_wait_doubles_up_to_its_limit_and_is_spread() -> None:
    for tries, most in ((1, 2), (2, 4), (3, 8), (6, 60), (5000, 60)):
        waits = [BACKOFF.delay(tries) for _ in range(500)]
        assert 0 <= min(waits) < most * 0.1
        assert most * 0.9 < max(waits) <= most


def test_a_failure_is_tried_again_until_the_last_try() -> None:
    error = ValueError("x")
    assert isinstance(decide(error, 2, 3, BACKOFF), Requeued)
    assert decide(error, 3, 3, BACKOFF) == Ended(False, error, "failed")
    assert decide(error, 1, 3, None) == Ended(False, error, "failed")
    assert decide(TimeoutError(), 3, 3, BACKOFF).reason == "timeout"


def test_no_limit_is_none_rather_than_zero() -> None:
    for jobs, seconds in ((0, 60), (1, 0)):
        with pytest.raises(ValueError, match="at least one job, and a period longer than 0"):
            RateLimit(jobs, seconds)


@pytest.mark.parametrize("error", [RetryJob(), asyncio.CancelledError()])
def test_what_asks_for_another_try_gets_it_at_once(error: BaseException) -> None:
    assert decide(error, 1, 3, BACKOFF) == Requeued(0)
    assert decide(error, 1, 3, None) == Requeued(0)


def test_arq_retry_says_when_and_is_bounded_like_the_rest() -> None:
    assert decide(Retry(defer=1.5), 1, 3, None) == Requeued(1.5)
    end = decide(Retry(defer=1.5), 3, 3, None)
    assert isinstance(end, Ended)
    assert isinstance(end.result, JobExecutionFailed)


def test_retry_jobs_false_turns_it_all_off_as_in_arq() -> None:
    error = RetryJob()
    assert decide(error, 1, 3, BACKOFF, retry_jobs=False) == Ended(False, error, "failed")
