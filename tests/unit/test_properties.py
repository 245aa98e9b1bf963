"""What holds for every input: of batches, rate limits and waits."""

from __future__ import annotations

import re

import pytest
from arq.connections import ArqRedis
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_worker import Backoff, NewJob, RateLimit
from aegis_worker.queue import producer

QUEUE = "arq:queue:test"
ALWAYS_THE_SAME = settings(deadline=None, derandomize=True)


@ALWAYS_THE_SAME
@given(sizes=st.lists(st.integers(0, 60), max_size=40), most_jobs=st.integers(1, 9), most_bytes=st.integers(1, 100))
def test_batches_are_as_large_as_they_may_be_and_keep_the_order(
    sizes: list[int], most_jobs: int, most_bytes: int
) -> None:
    redis = ArqRedis(job_serializer=lambda job: b"x" * job["a"][0])
    jobs = [NewJob("f", (size,), job_id=str(n)) for n, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producer, "BATCH_JOBS", most_jobs)
        patch.setattr(producer, "BATCH_BYTES", most_bytes)
        batches = list(producer._batches(redis, jobs, QUEUE))
    assert [int(job_id) for batch in batches for job_id, *_ in batch] == list(range(len(sizes)))
    for n, batch in enumerate(batches, 1):
        lengths = [len(payload) for _, payload, *_ in batch]
        assert 1 <= len(batch) <= most_jobs
        assert sum(lengths[:-1]) < most_bytes, "the job that fills it is its last"
        assert n == len(batches) or len(batch) == most_jobs or sum(lengths) >= most_bytes


@ALWAYS_THE_SAME
@given(expires=st.floats(-1e6, 1e6), defer_by=st.floats(-1e6, 1e6))
def test_a_payload_is_always_kept_for_a_time_that_redis_takes(expires: float, defer_by: float) -> None:
    """It refuses one of 0 ms, and the script would end in the middle of its batch."""
    jobs = [NewJob("f", expires=expires, defer_by=defer_by)]
    ((_, _, _, keep_ms, _),) = next(producer._batches(ArqRedis(), jobs, QUEUE))
    assert keep_ms >= 1


@ALWAYS_THE_SAME
@given(jobs=st.integers(1, 10**9), period=st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_a_rate_limit_is_read_as_it_is_written(jobs: int, period: tuple[str, int]) -> None:
    assert RateLimit.parse(f"{jobs}/{period[0]}") == RateLimit(jobs, period[1])


@settings(ALWAYS_THE_SAME, max_examples=300)
@given(text=st.text() | st.from_regex(r"\d+/[smh]", fullmatch=True) | st.from_regex(r"[0-9]+/[smh]\s?"))
def test_anything_else_is_no_rate_limit(text: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]*/[smh]", text):
        with pytest.raises(ValueError, match="a rate limit has the form"):
            RateLimit.parse(text)


@ALWAYS_THE_SAME
@given(base=st.floats(0, 1e9), limit=st.floats(0, 1e9), tries=st.integers(1, 10**9))
def test_a_wait_is_within_its_bounds(base: float, limit: float, tries: int) -> None:
    assert 0 <= Backoff(base, limit).delay(tries) <= min(limit, base * 2.0 ** min(tries - 1, 64))
