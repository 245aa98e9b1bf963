"""Replicas by demand: a loop on the host, that looks at the queues and types `make scale`.

What it goes by is the age of the oldest waiting job, which is what people wait for, and how many jobs each replica gets
done, which says how many replicas the load wants. It follows a rise at once, and a fall only after a while.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from . import capacity, commands, inside, lifecycle, lock
from .configuration import ConfigurationError
from .stack import Stack, say

DAY_S = 86_400
SPARE = 1.2  #: capacity over demand that is kept when replicas go


@dataclass(frozen=True)
class Look:
    """The queues of one service at a time: jobs that wait, the age of the oldest, and what each replica has done."""

    at: float  #: seconds, on any clock
    waiting: int
    oldest_s: float
    done: Mapping[str, int]  #: by container, since it started


@dataclass
class Scaler:
    """Decides on the number of replicas, look by look.

    :param least: and ``most``: the bounds of what it decides
    :param target_s: seconds that the oldest job may wait
    :param steady_s: seconds for which fewer replicas have to be enough before any goes
    """

    least: int
    most: int
    target_s: float
    steady_s: float
    rate: float | None = None  #: jobs a second that a replica with enough to do gets done
    _last: Look | None = None
    _fewer_since: float | None = None
    _enough: int = 0  #: the most that were wanted since then

    def decide(self, look: Look, replicas: int) -> int:
        """Return how many replicas there should be, of which there are so many now."""
        wanted = min(max(self._demand(look, replicas), self.least), self.most)
        self._last = look
        if wanted >= replicas:
            self._fewer_since = None
            return wanted
        if self._fewer_since is None:
            self._fewer_since, self._enough = look.at, wanted
        self._enough = max(self._enough, wanted)
        if look.at - self._fewer_since < self.steady_s:
            return replicas
        self._fewer_since = None
        return self._enough

    def _demand(self, look: Look, replicas: int) -> int:
        last = self._last
        if last is None or look.at <= last.at:
            return replicas
        seconds = look.at - last.at
        done = {name: max(0, count - last.done[name]) for name, count in look.done.items() if name in last.done}
        if look.waiting and last.waiting and any(done.values()):
            rate = sum(done.values()) / seconds / len(done)
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
        late = look.oldest_s > self.target_s
        if self.rate is None:
            return replicas * 2 if late else replicas - (not look.waiting)
        arriving = max(0.0, (sum(done.values()) + look.waiting - last.waiting) / seconds)
        if not late:
            return min(math.ceil(arriving * SPARE / self.rate), replicas)
        # As many as keep up with what arrives and work off the rest within the target; twice as many at most.
        needed = math.ceil((arriving + look.waiting / self.target_s) / self.rate)
        return min(max(needed, replicas + 1), replicas * 2)


def autoscale(stack: Stack, options: argparse.Namespace) -> int:
    """Look and scale until SIGINT or SIGTERM; replicas stay as they are then."""
    service, variable = commands.replicas_variable(options.queue)
    lifecycle.check_service(stack, service)
    if not 0 < options.least <= options.most:
        raise ConfigurationError(f"MIN={options.least} MAX={options.most}: it takes 1 or more, and MAX as many or more")
    if not (0 < options.every <= DAY_S and 0 < options.target <= DAY_S and 0 <= options.steady <= DAY_S):
        raise ConfigurationError("--every and --target take seconds above 0, --steady 0 or more, each a day at most")
    if not options.force:
        capacity.check(stack.given(**{variable: str(options.most)}))
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    scaler = Scaler(options.least, options.most, options.target, options.steady)
    with lock.alone(f"{stack.name}.autoscale-{service}", "autoscale") if not stack.dry_run else nullcontext():
        say(f"{service}: {options.least} to {options.most} replicas, a look every {options.every:g} s; Ctrl-C stops")
        problem = ""
        while not stopped:
            try:
                _step(stack.reloaded(), scaler, options.queue)
                problem = ""
            except ConfigurationError as error:
                if (now := str(error)) != problem:  # once, not at each look
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
    look = _look(stack, queue)
    wanted = scaler.decide(look, replicas)
    if wanted == replicas:
        return
    rate = f", a replica does {scaler.rate:.1f} a second" if scaler.rate else ""
    oldest = f", the oldest for {look.oldest_s:.1f} s" if look.waiting else ""
    say(f"{time.strftime('%H:%M:%S')} {replicas} → {wanted} replicas: {look.waiting} jobs wait{oldest}{rate}")
    with lock.alone(stack.name, "autoscale") if not stack.dry_run else nullcontext():
        lifecycle.set_replicas(stack.reloaded(), queue, wanted)


def _look(stack: Stack, queue: str | None) -> Look:
    state = json.loads(stack.output(inside.app_command(stack, ["health", "status", "--json"], terminal=False)))
    queues = [each for each in state["queues"] if queue in (None, each["queue"])]
    return Look(
        at=time.monotonic(),
        waiting=sum(each["due"] for each in queues),
        oldest_s=max((each["oldest_due_s"] or 0 for each in queues), default=0),
        done=_done_by_container(queues),
    )


def _done_by_container(queues: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Add up what the processes of each container have done: it has one, or several, for each queue it serves."""
    done: Counter[str] = Counter()
    for queue in queues:
        for process in queue["replicas"]:
            if process["alive"]:  # its name is the container's, of the second and later ones with -2, …
                container = process["replica"].partition("-")[0]
                done[container] += process["complete"] + process["failed"] + process["retried"]
    return done
