"""The Redis scripts beside a model: hypothesis makes up what workers, producers and time do, in any order.

After each step everything in Redis is compared with what the model says should be there, to the last key. Time is made
to pass by hand, as it would do it: a lease lapses when its mark is deleted and its end lies in the past. So no step
waits, and a failure shrinks to a few steps, which are printed.

``make test`` tries the same examples each time. To look further, with others each time::

    HYPOTHESIS_EXAMPLES=5000 .venv/bin/pytest tests/integration/test_scripts_model.py --timeout 0
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import cron
from arq.connections import RedisSettings
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from aegis_worker import NewJob, enqueue_many
from aegis_worker.queue import admin, keys, scripts
from aegis_worker.queue.scripts import Claim
from aegis_worker.queue.settlement import Completed, Died, Lease, Reply, Retried, Returned, Settlement
from aegis_worker.worker.cron import Cron
from tests.integration.conftest import QUEUE
from tests.integration.scripts_model import (
    BEYOND_MS,
    CRON_START,
    ENDS_S,
    FAR_MS,
    HOUR_MS,
    LEASE_S,
    MOST_DEAD,
    MOST_DEAD_BYTES,
    PERIOD_S,
    STOCK,
    Around,
    Job,
    Model,
    Time,
    Worker,
    earliest,
    is_past,
)

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES") or 0)
SETTINGS = settings(
    max_examples=EXAMPLES or 150,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
)


def pick(ids: Iterable[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(ids))


ENDS = st.one_of(
    st.tuples(st.just("completed"), st.booleans(), st.sampled_from([0, 0, FAR_MS])),
    st.tuples(st.just("died"), st.booleans(), st.just(0)),
    st.tuples(st.just("retried"), st.booleans(), st.sampled_from([0, 1])),
    st.tuples(st.just("returned"), st.just(False), st.just(0)),
)


def step(weight: int = 1, **strategies: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Mark a method as one of the machine's steps, with what its arguments are drawn from."""

    def mark(method: Any) -> Any:
        method.weight, method.strategies = weight, strategies
        return method

    return mark


class ScriptsMachine(Model):
    """The steps: what workers, producers and time do."""

    @initialize(rate=st.sampled_from([0, 0, 3]), concurrency=st.sampled_from([0, 0, 3]), workers=st.integers(2, 3))
    def begin(self, rate: int, concurrency: int, workers: int) -> None:
        self.rate, self.concurrency = rate, concurrency
        self.workers = [Worker(self.scripts(rate, concurrency)) for _ in range(workers)]

    # Not a rule for each: of rules hypothesis leaves out many at a time, and little comes of a queue that none fills.
    @rule(data=st.data())
    def any_step(self, data: st.DataObject) -> None:
        steps = {name: method for name, method in vars(type(self)).items() if hasattr(method, "strategies")}
        name = data.draw(st.sampled_from([name for name, method in steps.items() for _ in range(method.weight)]))
        drawn = {name: data.draw(strategy, name) for name, strategy in steps[name].strategies.items()}
        steps[name](self, **drawn)

    # -- producers -------------------------------------------------------------------------------------------------

    @step(
        weight=3,
        wanted=st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.sampled_from([False, False, False, True]),
                st.sampled_from([None, None, "k", "l"]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def enqueue(self, wanted: list[tuple[str, bool, str | None]]) -> None:
        new, expected = [], []
        for job_id, later, key in wanted:
            if not self.may_be_enqueued(job_id):
                continue
            number = self.past()
            due = datetime.fromtimestamp(number / 1000, UTC) + timedelta(days=later * 100_000)
            new.append(NewJob("f", (number,), job_id=job_id, defer_until=due, unique=key))
            free = not (self.in_use(job_id) or self.is_held(job_id) or self.is_held(self.unique.get(key or "", "")))
            expected.append(job_id if free else None)
            if free:
                self.jobs[job_id] = Job(number + later * 100_000 * 86_400_000, b"[%d]" % number)
                if key:
                    self.unique[key] = job_id
        answer = self.run(enqueue_many(self.redis, new, queue_name=QUEUE))
        self.rung |= any(expected)
        assert [job and job.job_id for job in answer] == expected

    @step(name=st.sampled_from(["each", "nightly", "first"]), minute=st.integers(0, 2), replica=st.sampled_from("xyz"))
    def cron(self, name: str, minute: int, replica: str) -> None:
        if name == "first":
            self.start(replica)
        else:
            self.tick(name, minute, replica)

    def tick(self, name: str, minute: int, replica: str) -> None:
        at = CRON_START + timedelta(minutes=minute)
        at_ms = int(at.timestamp() * 1000)
        job_id = "nightly" if name == "nightly" else f"{name}:{at_ms}"
        if not self.may_be_enqueued(job_id):
            return
        job = cron(enqueue_many, name=name, second=0, job_id="nightly" if name == "nightly" else None)
        job.next_run = at
        self.run(Cron(self.redis, QUEUE, replica, [job]).enqueue_due(at, timedelta(seconds=1)))
        if at_ms > self.ticks.get(name, 0):
            self.ticks[name] = at_ms
            if not self.in_use(job_id):
                self.jobs[job_id] = Job(at_ms, b"[]")

    def start(self, replica: str) -> None:
        """A replica, with a cron job that runs at startup."""
        at_ms = self.past()
        job = cron(enqueue_many, name="first", run_at_startup=True)
        crons = Cron(self.redis, QUEUE, replica, [job])
        self.run(crons.enqueue_due(datetime.fromtimestamp(at_ms / 1000, UTC), timedelta(seconds=1)))
        if self.started and replica not in self.started:
            self.started.add(replica)
        else:
            self.started = {replica}
            self.jobs[f"first:{at_ms}"] = Job(at_ms, b"[]")

    @step(job_id=st.sampled_from("abc"))
    def abort(self, job_id: str) -> None:
        self.aborts[job_id] = self.past()
        self.run(self.redis.zadd(keys.ABORT, {job_id: self.aborts[job_id]}))

    @step(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        job_ids = data.draw(st.lists(pick({"a", *self.dead}), min_size=1, unique=True))
        job_ids = [job_id for job_id in job_ids if self.may_be_enqueued(job_id)]
        answer, now = self.timed(admin.revive(self.redis, QUEUE, job_ids))
        revived = []
        for job_id in job_ids:
            _, payload, _ = self.dead.get(job_id, (0, b"", b""))
            if payload and job_id not in self.jobs and job_id not in self.marks:
                revived.append(job_id)
                self.jobs[job_id] = Job(Around(now.low, now.high + 1), payload)
                del self.dead[job_id]
                self.results.pop(job_id, None)
                self.aborts.pop(job_id, None)
                self.raised.pop(job_id, None)
        assert answer == revived

    @step(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        job_ids = data.draw(st.lists(pick({"a", *self.dead}), min_size=1, unique=True))
        there = [job_id for job_id in job_ids if self.dead.pop(job_id, None)]
        assert self.run(admin.discard(self.redis, QUEUE, job_ids)) == len(there)

    # -- our workers -----------------------------------------------------------------------------------------------

    @step(
        weight=4,
        n=st.integers(0, 2),
        wanted=st.integers(1, 4),
        heard=st.sampled_from([True, True, True, False]),
        waited=st.booleans(),
        paused=st.sampled_from([False] * 9 + [True]),
    )
    def claim(self, n: int, wanted: int, heard: bool, waited: bool, paused: bool) -> None:
        worker = self.workers[n % len(self.workers)]
        if paused:
            self.run(self.redis.set(keys.paused(QUEUE), 1))
            assert self.run(worker.scripts.claim(wanted)) == ([], None, True, False)
            self.run(self.redis.delete(keys.paused(QUEUE)))
        answer, now = self.timed(worker.scripts.claim(wanted, self.redis.execute_command if waited else None))
        room = wanted
        if self.rate:
            self.begun = [at for at in self.begun if at > now.high - PERIOD_S * 1000]
            room = min(room, self.rate - len(self.begun))
        expected: list[tuple[str, Time, bool]] = []
        ended = {job_id: at for job_id, at in self.stale.items() if at < now.low}
        lapses = ended | {job_id: self.jobs[job_id].lapses for job_id in self.jobs if self.lapsed(job_id)}
        for job_id in sorted(lapses, key=lambda job_id: (lapses[job_id], job_id)):
            if len(expected) >= room:
                break
            if job_id in ended:
                del self.stale[job_id]
            elif job_id in self.marks:
                self.jobs[job_id].lapses = now + 1000  # a stock worker has it
                self.jobs[job_id].unread = False
            else:
                expected.append((job_id, now, True))
        most = room
        if self.concurrency:
            leases = len(self.stale) + sum(job.lapses is not None for job in self.jobs.values())
            most = min(room, len(expected) + max(0, self.concurrency - leases))
        due = sorted((job.score, job_id) for job_id, job in self.jobs.items() if job.score <= now.low + 1)
        held = [job_id for _, job_id in due if job_id in self.marks]
        free = [(job_id, at, False) for at, job_id in due if job_id not in self.marks and not self.lapsed(job_id)]
        expected += free[: max(0, most - len(expected))]

        assert [(job.lease.job_id, job.due_ms, job.lapsed) for job in answer.jobs] == expected
        for claim in answer.jobs:
            job_id, job = claim.lease.job_id, self.jobs[claim.lease.job_id]
            job.tries += claim.lapsed and not job.unread
            assert (claim.tries, claim.payload) == (job.tries + 1, job.payload)
            assert claim.abort_ms == self.aborts.get(job_id)
            job.unread = waited and not claim.lapsed
            job.score, job.lapses = now + ENDS_S * 1000, now + (LEASE_S * 1000 + job.unread / 2)
            self.marks[job_id] = claim.lease.token
            if self.rate:
                self.begun.append(now)
        left = {job_id for _, job_id in due} - {job_id for job_id, *_ in expected}
        leases = [*self.stale.values(), *(job.lapses for job in self.jobs.values() if job.lapses is not None)]
        kept_back = left or any(earliest(at) < now.low for at in leases)
        assert answer.limited == bool(self.rate > 0 and len(self.begun) == self.rate and kept_back)
        # One that is held may lie behind what was enough.
        cut = most < room and bool(left)
        assert (cut or (bool(held) and len(expected) < most)) <= answer.blocked <= (cut or bool(held))
        if len(expected) < wanted or answer.limited:
            self.check_wait(answer, now)
        else:
            assert answer.wait_s is None
            self.rung |= bool(left)
        if heard:
            worker.known |= {claim.lease.job_id: claim.lease.token for claim in answer.jobs}
            self.claims += answer.jobs

    def check_wait(self, answer: scripts.Claims, now: Around) -> None:
        times = [job.score for job in self.jobs.values() if job.score != now and not is_past(job.score)]
        # A lease has lapsed when its last millisecond is over.
        leases = [*self.stale.values(), *(job.lapses for job in self.jobs.values() if job.lapses is not None)]
        times += [at + 1 for at in leases]
        if answer.limited:
            times = [self.begun[0] + PERIOD_S * 1000]
        if not times:
            assert answer.wait_s is None
            return
        low = min(at.low if isinstance(at, Around) else at for at in times)
        high = min(at.high if isinstance(at, Around) else at for at in times)
        assert answer.wait_s == Around(max(0, low - now.high) // 1 / 1000, max(0, high - now.low) // 1 / 1000)

    @step(n=st.integers(0, 2))
    def recall(self, n: int) -> None:
        worker = self.workers[n % len(self.workers)]
        ours = worker.scripts._name + ":"
        answer, now = self.timed(worker.scripts.recall([Lease(*known) for known in worker.known.items()]))
        worker.fence = worker.scripts._claims + 1
        unheard = [job_id for job_id in self.jobs if self.marks.get(job_id, "").startswith(ours)]
        unheard = [job_id for job_id in unheard if worker.known.get(job_id) != self.marks[job_id]]
        assert answer == len(unheard)
        for job_id in unheard:
            del self.marks[job_id]
            self.jobs[job_id].score, self.jobs[job_id].lapses = now, None
        # Copies of claims that were sent before.
        last = worker.scripts._claims
        for number in range(max(0, last - 2), last):
            worker.scripts._claims = number
            assert self.run(worker.scripts.claim(3)) == ([], None, False, False)
        worker.scripts._claims = last

    def some_claims(self, data: st.DataObject) -> list[Claim]:
        """Some that hold, and some that may be over, the latest above all."""
        if not self.claims:
            return []
        held = [claim for claim in self.claims if self.marks.get(claim.lease.job_id) == claim.lease.token]
        one = st.sampled_from(self.claims[-6:])
        one = st.sampled_from(held) | one if held else one
        return data.draw(st.lists(one, min_size=1, max_size=3, unique_by=lambda claim: claim.lease.job_id))

    @step(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if not (batch := self.some_claims(data)):
            return
        lost, now = self.timed(self.workers[0].scripts.renew([claim.lease for claim in batch]))
        expected = []
        for job_id, token in ((claim.lease.job_id, claim.lease.token) for claim in batch):
            job, mark = self.jobs.get(job_id), self.marks.get(job_id)
            if job and mark is None and job.lapses is not None:  # it lapsed, and nobody has it
                self.marks[job_id] = token
                job.lapses, job.unread = now + LEASE_S * 1000, False
            elif job and mark == token:
                job.lapses, job.unread = now + LEASE_S * 1000, False
            else:
                expected.append(Lease(job_id, token))
        assert lost == expected

    @step(weight=4, data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """One that was settled before is sent twice, and one whose lease is lost comes too late."""
        if not (batch := [(claim, data.draw(ENDS)) for claim in self.some_claims(data)]):
            return
        settlements = [self.settlement(claim, end) for claim, end in batch]
        answer, now = self.timed(self.workers[0].scripts.settle(settlements))
        replies = [self.reply(claim, settlement) for (claim, _), settlement in zip(batch, settlements, strict=True)]
        assert answer == replies
        for claim, settlement, reply in zip((claim for claim, _ in batch), settlements, replies, strict=True):
            if reply == Reply.EXPIRED:
                continue
            for worker in self.workers:
                if worker.known.get(claim.lease.job_id) == claim.lease.token:
                    del worker.known[claim.lease.job_id]
            if reply == Reply.DONE:
                self.take(claim, settlement, now)
        while len(self.dead) > MOST_DEAD or (len(self.dead) > 1 and self.dead_bytes() > MOST_DEAD_BYTES):
            self.dead.pop(min(self.dead, key=lambda job_id: (earliest(self.dead[job_id][0]), job_id)))

    def reply(self, claim: Claim, end: Settlement) -> Reply:
        """A claim is ours while its lease holds, and when that has lapsed and nobody took the job."""
        job, mark = self.jobs.get(claim.lease.job_id), self.marks.get(claim.lease.job_id)
        back = isinstance(end, Retried | Returned)
        if job and (mark == claim.lease.token or (mark is None and job.lapses is not None)):
            expires = job.payload is None or (isinstance(end, Retried) and end.wait_ms == BEYOND_MS)
            return Reply.EXPIRED if back and expires else Reply.DONE
        return Reply.LOST if job and mark and not back else Reply.OVER

    def settlement(self, claim: Claim, end: tuple[str, bool, int]) -> Settlement:
        kind, flag, last = end
        if kind == "retried":
            wait_ms = flag * (HOUR_MS if last else BEYOND_MS)
            return Retried(claim.lease, wait_ms, claim.tries * last, f"raised by {claim.lease.token}" * last)
        if kind == "returned":
            return Returned(claim.lease, claim.due_ms)
        result = f"result of {claim.lease.token}".encode() if flag else b""
        if kind == "died":
            letter = f"letter of {claim.lease.token}" * (1 + 3 * flag)
            return Died(claim.lease, result, FAR_MS, letter, claim.payload or b"")
        return Completed(claim.lease, result, FAR_MS, last)

    def take(self, claim: Claim, end: Settlement, now: Around) -> None:
        job_id, job = claim.lease.job_id, self.jobs[claim.lease.job_id]
        mark = self.marks.pop(job_id, None)
        if isinstance(end, Retried):
            job.lapses, job.score = None, now + end.wait_ms
            job.tries = claim.tries if end.tries else job.tries
            if end.raised:
                self.raised[job_id] = end.raised
            return
        if isinstance(end, Returned):
            job.lapses, job.score = None, end.due_ms
            return
        del self.jobs[job_id]
        self.aborts.pop(job_id, None)
        if claim.lease.tried or mark is None:
            self.raised.pop(job_id, None)
        if end.result:
            self.results[job_id] = end.result
        if isinstance(end, Died):
            self.dead[job_id] = (now, claim.payload or b"", end.letter.encode())
        elif end.mark_ms:
            self.marks[job_id] = STOCK

    # -- stock workers ---------------------------------------------------------------------------------------------

    @step(data=st.data())
    def stock_worker(self, data: st.DataObject) -> None:
        self.any_of(data, {self.stock_worker_begins: self.free_for_stock(), self.stock_mark_goes: self.stock_marks()})

    def any_of(self, data: st.DataObject, steps: dict[Callable[[st.DataObject], None], Any]) -> None:
        """Take one of several steps, of those that can be taken."""
        if possible := [step for step, condition in steps.items() if condition]:
            data.draw(st.sampled_from(possible))(data)

    def stock_worker_begins(self, data: st.DataObject) -> None:
        job_id = data.draw(pick(self.free_for_stock()))
        job = self.jobs[job_id]
        if job.lapses is not None:  # by then it has ended for certain
            job.score = self.past()
            self.run(self.redis.zadd(QUEUE, {job_id: job.score}))
        self.run(self.redis.psetex(keys.IN_PROGRESS + job_id, FAR_MS, STOCK))
        self.run(self.redis.incr(keys.RETRY + job_id))
        self.run(self.redis.pexpire(keys.RETRY + job_id, FAR_MS))
        self.marks[job_id] = STOCK
        job.tries += 1

    def free_for_stock(self) -> list[str]:
        return [
            job_id
            for job_id, job in self.jobs.items()
            if job_id not in self.marks and (job.lapses is not None or is_past(job.score))
        ]

    def stock_marks(self) -> list[str]:
        return [job_id for job_id, mark in self.marks.items() if mark == STOCK]

    def stock_mark_goes(self, data: st.DataObject) -> None:
        """The stock worker has done the job, or died; or it was the mark that a cron job's end has left."""
        job_id, done = data.draw(pick(self.stock_marks())), data.draw(st.booleans())
        del self.marks[job_id]
        self.run(self.redis.delete(keys.IN_PROGRESS + job_id))
        if done and job_id in self.jobs:
            self.run(self.redis.delete(keys.JOB + job_id, keys.RETRY + job_id))
            self.run(self.redis.zrem(QUEUE, job_id))
            if self.jobs[job_id].lapses is not None:
                self.stale[job_id] = self.jobs[job_id].lapses
            del self.jobs[job_id]

    # -- time ------------------------------------------------------------------------------------------------------

    @step(data=st.data(), long_ago=st.booleans())
    def lease_lapses(self, data: st.DataObject, long_ago: bool) -> None:
        if not self.leased():
            return
        job_id = data.draw(pick(self.leased()))
        if long_ago:
            self.jobs[job_id].score = self.past()
            self.run(self.redis.zadd(QUEUE, {job_id: self.clock}))
        job = self.jobs[job_id]
        job.lapses = self.past() + job.unread / 2
        del self.marks[job_id]
        self.run(self.redis.delete(keys.IN_PROGRESS + job_id))
        self.run(self.redis.zadd(keys.leases(QUEUE), {job_id: job.lapses}))

    @step(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        self.any_of(
            data,
            {
                self.job_is_past_its_end_or_deferred_no_more: self.aside(),
                self.period_passes: self.begun,
                self.result_expires: self.results,
                self.payload_expires: self.jobs,
            },
        )

    def job_is_past_its_end_or_deferred_no_more(self, data: st.DataObject) -> None:
        job_id = data.draw(pick(self.aside()))
        self.jobs[job_id].score = self.past()
        self.run(self.redis.zadd(QUEUE, {job_id: self.clock}))

    def aside(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if not is_past(job.score)]

    def period_passes(self, data: st.DataObject) -> None:
        for n in range(data.draw(st.integers(1, len(self.begun)))):
            self.begun[n] = self.past()
            self.run(self.redis.lset(keys.rate_window(QUEUE), n, self.clock))

    def result_expires(self, data: st.DataObject) -> None:
        job_id = data.draw(pick(self.results))
        del self.results[job_id]
        self.run(self.redis.delete(keys.RESULT + job_id))

    def payload_expires(self, data: st.DataObject) -> None:
        job_id = data.draw(pick(self.jobs))
        self.jobs[job_id].payload = None
        self.run(self.redis.delete(keys.JOB + job_id))


def test_the_scripts_do_what_the_model_does(redis_server: RedisSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "MOST_DEAD", MOST_DEAD)
    monkeypatch.setattr(scripts, "MOST_DEAD_BYTES", MOST_DEAD_BYTES)
    monkeypatch.setattr(ScriptsMachine, "redis_settings", redis_server, raising=False)
    run_state_machine_as_test(ScriptsMachine, settings=SETTINGS)
