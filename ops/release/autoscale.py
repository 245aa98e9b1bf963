"""Replicas by demand: a loop on the host that polls the queues and does what `make scale` does.

It goes by the age of the oldest waiting job, since that is how long people wait, and by the rate at which a replica
works, since that says how many replicas the load needs. It follows a rise at once, and a fall only after a while.
"""

import argparse
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import OpsError
from ..config.units import DAY_S
from ..engine import capacity, commands, services
from ..engine.stack import Stack
from ..engine.terminal import say
from .lifecycle import check_service, set_replicas

HEADROOM = 1.2  #: capacity over demand that stays when replicas go


@dataclass(frozen=True)
class Sample:
    """The queues of one service at one time: the jobs that wait, the age of the oldest, what each replica has done."""

    at: float  #: seconds, on any clock
    waiting: int
    oldest_s: float
    done: Mapping[str, int]  #: by container, since it started


@dataclass
class Scaler:
    """Decides on the number of replicas, sample by sample.

    :param minimum: the least number of replicas; ``maximum`` is the greatest
    :param target_s: seconds that the oldest job may wait
    :param steady_s: seconds for which fewer replicas have to be enough before any goes
    """

    minimum: int
    maximum: int
    target_s: float
    steady_s: float
    rate: float | None = None  #: jobs a second that a replica with enough to do gets done
    _last: Sample | None = None
    _fewer_since: float | None = None
    _enough: int = 0  #: the greatest number that was wanted since then

    def decide(self, sample: Sample, replicas: int) -> int:
        """Return how many replicas there should be. ``replicas`` is how many there are."""
        wanted = min(max(self._demand(sample, replicas), self.minimum), self.maximum)
        self._last = sample
        if wanted >= replicas:
            self._fewer_since = None
            return wanted
        if self._fewer_since is None:
            self._fewer_since, self._enough = sample.at, wanted
        self._enough = max(self._enough, wanted)
        if sample.at - self._fewer_since < self.steady_s:
            return replicas
        self._fewer_since = None
        return self._enough

    def _demand(self, sample: Sample, replicas: int) -> int:
        last = self._last
        if last is None or sample.at <= last.at:
            return replicas
        seconds = sample.at - last.at
        done = {name: max(0, count - last.done[name]) for name, count in sample.done.items() if name in last.done}
        if sample.waiting and last.waiting and any(done.values()):
            rate = sum(done.values()) / seconds / len(done)
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
        late = sample.oldest_s > self.target_s
        if self.rate is None:
            return replicas * 2 if late else replicas - (not sample.waiting)
        arriving = max(0.0, (sum(done.values()) + sample.waiting - last.waiting) / seconds)
        if not late:
            return min(math.ceil(arriving * HEADROOM / self.rate), replicas)
        # So many keep up with what arrives, and work off the rest within the target. It is twice as many at most.
        needed = math.ceil((arriving + sample.waiting / self.target_s) / self.rate)
        return min(max(needed, replicas + 1), replicas * 2)


def autoscale(stack: Stack, options: argparse.Namespace) -> int:
    """Poll and scale until SIGINT or SIGTERM. The replicas stay as they are then."""
    service, variable = commands.replicas_variable(options.queue)
    check_service(stack, service)
    if not 0 < options.minimum <= options.maximum:
        raise OpsError(f"MIN={options.minimum} MAX={options.maximum}: MIN has to be 1 or more, and MAX as many or more")
    if not (0 < options.every <= DAY_S and 0 < options.target <= DAY_S and 0 <= options.steady <= DAY_S):
        raise OpsError("--every and --target take seconds above 0, --steady 0 or more, each a day at most")
    if not options.force:
        capacity.check(stack.with_variables(**{variable: str(options.maximum)}))
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    scaler = Scaler(options.minimum, options.maximum, options.target, options.steady)
    with stack.alone("autoscale", of=f".autoscale-{service}"):
        bounds = f"{options.minimum} to {options.maximum} replicas"
        say(f"{service}: {bounds}, a check every {options.every:g} s; Ctrl-C stops")
        problem = ""
        while not stopped:
            try:
                _step(stack.reloaded(), scaler, options.queue)
                problem = ""
            except OpsError as error:
                if (now := str(error)) != problem:  # say it once, not each time
                    say(now)
                problem = str(error)
            wakes_at = time.monotonic() + options.every
            while not stopped and time.monotonic() < wakes_at:  # no Event: a second signal while it is set would hang
                time.sleep(min(0.2, options.every))
    say(f"stopped: the replicas of {service} stay as they are")
    return 0


def _step(stack: Stack, scaler: Scaler, queue: str | None) -> None:
    service, _ = commands.replicas_variable(queue)
    replicas = sum(container.service == service and container.runs for container in stack.containers())
    sample = _sample(stack, queue)
    wanted = scaler.decide(sample, replicas)
    if wanted == replicas:
        return
    rate = f", a replica does {scaler.rate:.1f} a second" if scaler.rate else ""
    oldest = f", the oldest for {sample.oldest_s:.1f} s" if sample.waiting else ""
    say(f"{time.strftime('%H:%M:%S')} {replicas} → {wanted} replicas: {sample.waiting} jobs wait{oldest}{rate}")
    with stack.alone("autoscale"):
        set_replicas(stack.reloaded(), queue, wanted)


def _sample(stack: Stack, queue: str | None) -> Sample:
    state = json.loads(stack.output(services.app_command(stack, ["health", "status", "--json"], terminal=False)))
    queues = [each for each in state["queues"] if queue in (None, each["queue"])]
    return Sample(
        at=time.monotonic(),
        waiting=sum(each["due"] for each in queues),
        oldest_s=max((each["oldest_due_s"] or 0 for each in queues), default=0),
        done=_done_by_container(queues),
    )


def _done_by_container(queues: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return what the processes of each container have done together. It has one or several for each queue."""
    done: Counter[str] = Counter()
    for queue in queues:
        for process in queue["replicas"]:
            if process["alive"]:  # its name is the container's; from the second process on, with -2, …
                container = process["replica"].partition("-")[0]
                done[container] += process["complete"] + process["failed"] + process["retried"]
    return done
