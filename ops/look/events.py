"""What happened to a stack, in order, from all sources on this machine.

The journal has what people did. The engine has what happened to containers, but only its last few hundred events, and
health checks fill those within a minute. So the containers that are still there are inspected as well, and workers'
logs tell of processes that ended. The kernel's log has the longest memory of processes that ran out of memory.
"""

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from ..config import OpsError, units
from ..engine import commands, journal
from ..engine.stack import Stack, is_worker
from ..engine.terminal import say

SAME_S = 2  #: what two sources say of one container within so many seconds is one event
FLAPPING_S = 300  #: health that changes more often than every so many seconds is one event
POLL_S = 2
_SINCE = re.compile(r"\d+[smhd]")
_SUPERVISOR = re.compile(r"(\S+) supervisor: (.*)")
_OOM_KILL = re.compile(r"^(\S+) oom-kill:.*task_memcg=\S*?([0-9a-f]{64})\S*,task=([^,]+),pid=(\d+)", re.MULTILINE)
_FRACTION = re.compile(r"[.,](\d{1,6})\d*")


@dataclass(frozen=True)
class Event:
    """What happened: when, in seconds since 1970, to which container or service, and who did it."""

    at: float
    event: str
    of: str = ""
    details: str = ""
    by: str = ""

    def is_same(self, other: "Event") -> bool:
        """Return whether both are one event. Only one source has what people did, and its times are exact."""
        near = (self.event, self.of) == (other.event, other.of) and abs(self.at - other.at) < SAME_S
        return self == other if self.by else near

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at))
        details = " ".join(filter(None, (self.details, self.by and f"by {self.by}")))
        return f"{when}  {self.event:<12}  {self.of:<18}  {details}".rstrip()


def show(stack: Stack, options: argparse.Namespace) -> int:
    """Print what happened and, with ``follow``, what happens from now on."""
    since = time.time() - seconds(options.since)
    shown: list[Event] = []
    if kernel_log(stack) is None:
        say("the kernel's log can be read by root alone: what ran out of memory a while ago may be missing")
    while True:
        for event in (new := _others(gather(stack, since), shown)):
            print(json.dumps(asdict(event)) if options.json else event, flush=True)
        shown += new
        if not options.follow:
            return 0
        time.sleep(POLL_S)
        # An event is remembered for as long as a source can give it again.
        since = max(since, time.time() - FLAPPING_S)
        shown = [event for event in shown if event.at >= since]


def seconds(text: str) -> int:
    """Return how long ``2h`` is, in seconds. Raises ``OpsError`` if the text is no length of time."""
    if not _SINCE.fullmatch(text):
        raise OpsError(f"--since {text}: a length of time is a number and s, m, h or d, as in 2h")
    return int(units.seconds(text))


def gather(stack: Stack, since: float) -> list[Event]:
    """Return what happened since then, in order. If several sources have an event, the first of them tells it."""
    ids = stack.output(commands.list_containers(stack.project)).split()
    facts = json.loads(stack.ask(["docker", "inspect", *ids]).stdout) if ids else []
    names = {each["Id"]: _short(stack, each["Name"].lstrip("/")) for each in facts}
    found: list[Event] = []
    for source in (
        _of_kernel(kernel_log(stack) or "", names),
        _of_engine(stack, since),
        _of_containers(facts, names),
        _of_logs(stack, facts, names, since),
        _of_journal(stack),
    ):
        found += _others((event for event in source if event.at >= since), found)
    return sorted(found, key=lambda event: event.at)


def kernel_log(stack: Stack) -> str | None:
    """Return what the kernel has logged since it started, or None if we may not read it."""
    done = stack.ask(commands.KERNEL_LOG)
    return None if done.returncode else done.stdout


# -- sources ------------------------------------------------------------------------------------------------------


def _of_journal(stack: Stack) -> Iterator[Event]:
    for entry in journal.read(stack.name):
        facts = {key: value for key, value in entry.items() if key not in ("at", "by", "event", "service")}
        details = ", ".join(f"{key} {value}" for key, value in facts.items())
        yield Event(entry["at"], entry["event"], entry.get("service", ""), details, entry["by"])


def _of_engine(stack: Stack, since: float) -> list[Event]:
    lines = stack.output(commands.engine_events(stack.project, since)).splitlines()
    return list(without_flapping(filter(None, (_from_engine(stack, json.loads(line)) for line in lines))))


def _from_engine(stack: Stack, event: Mapping[str, Any]) -> Event | None:
    """Return what an event of the engine tells, or None if it is of no interest."""
    at, facts = event["timeNano"] / 1e9, event["Actor"]["Attributes"]
    of = _short(stack, facts["name"])
    action, _, state = event["Action"].partition(": ")
    if action == "kill" and facts.get("signal") != "9":
        return None
    known = {
        "start": ("started", ""),
        "die": ("ended", f"exit code {facts.get('exitCode')}"),
        "oom": ("oom-kill", "a process took more than the memory limit"),
        "kill": ("killed", "SIGKILL, by way of the engine"),
        "restart": ("restarted", "by way of the engine"),
        "destroy": ("removed", ""),
        "health_status": (state, ""),
    }
    return Event(at, known[action][0], of, known[action][1]) if action in known else None


def without_flapping(events: Iterable[Event]) -> Iterator[Event]:
    """Give each period of bad health once: when it began, how often health was bad, and when it was over.

    A container that is healthy after its start is no event.
    """
    unhealthy: dict[str, tuple[Event, int, Event]] = {}  # the first event, how many, the last one

    def ends(of: str) -> Iterator[Event]:
        first, times, last = unhealthy.pop(of)
        yield replace(first, details=f"{times} times" if times > 1 else "")
        if last.event == "healthy":
            yield replace(last, details="again")

    for event in events:
        if event.event not in ("healthy", "unhealthy"):
            yield event
            continue
        if event.of in unhealthy and event.at - unhealthy[event.of][2].at > FLAPPING_S:
            yield from ends(event.of)
        if event.of in unhealthy:
            first, times, _ = unhealthy[event.of]
            unhealthy[event.of] = first, times + (event.event == "unhealthy"), event
        elif event.event == "unhealthy":
            unhealthy[event.of] = event, 1, event
    for of in list(unhealthy):
        yield from ends(of)


def _of_containers(facts: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Event]:
    for each in facts:
        of, state, restarts = names[each["Id"]], each["State"], each["RestartCount"]
        if not state["StartedAt"].startswith("0001"):
            details = f"start {restarts + 1}, by the restart policy" if restarts else ""
            yield Event(_time(state["StartedAt"]), "started", of, details)
        if not state["FinishedAt"].startswith("0001"):
            # A container that runs again has no exit code any more.
            reason = ", out of memory" if state["OOMKilled"] else ""
            code = "" if state["Running"] else f"exit code {state['ExitCode']}{reason}"
            yield Event(_time(state["FinishedAt"]), "ended", of, code)


def _of_logs(
    stack: Stack, facts: Iterable[Mapping[str, Any]], names: Mapping[str, str], since: float
) -> Iterator[Event]:
    """Give what the supervisors of worker processes have logged."""
    for each in facts:
        if is_worker(each["Config"]["Labels"]["com.docker.compose.service"]):
            argv = ["docker", "logs", "--timestamps", "--since", f"{int(since)}", each["Id"]]
            for line in stack.ask(argv).stdout.splitlines():
                if match := _SUPERVISOR.match(line):
                    yield Event(_time(match[1]), "supervisor", names[each["Id"]], match[2])


def _of_kernel(log: str, names: Mapping[str, str]) -> Iterator[Event]:
    for when, container, process, pid in _OOM_KILL.findall(log):
        if container in names:
            details = f"{process}, process {pid}, took more than the memory limit"
            yield Event(_time(when), "oom-kill", names[container], details)


def _others(events: Iterable[Event], known: Iterable[Event]) -> list[Event]:
    return [event for event in events if not any(event.is_same(other) for other in known)]


def _short(stack: Stack, container: str) -> str:
    return container.removeprefix(f"{stack.project}-")


def _time(text: str) -> float:
    """Return a time as Docker or the kernel writes it. It may have more digits than the six that Python 3.10 takes."""
    text = _FRACTION.sub(lambda match: f".{match[1]:0<6}", text).replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()
