"""What happened to a stack, in order, out of everything on this machine that remembers some of it.

The journal has what people did. The engine tells what befell containers, but keeps its last few hundred events alone,
and health checks fill those within a minute; so what it says of each container that is still there is asked for as
well, and workers' logs for processes that ended. Of processes that ran out of memory the kernel's log knows longest.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from . import commands, journal
from .configuration import ConfigurationError
from .stack import Stack, is_worker, say

SAME_S = 2  #: what two sources tell of one container within these seconds is one event
FLAPS_S = 300  #: as long as health changes more often than that, it is told once
LOOK_S = 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SINCE = re.compile(r"(\d+)([smhd])")
_SUPERVISOR = re.compile(r"(\S+) supervisor: (.*)")
_OOM_KILL = re.compile(r"^(\S+) oom-kill:.*task_memcg=\S*?([0-9a-f]{64})\S*,task=([^,]+),pid=(\d+)", re.MULTILINE)
_FRACTION = re.compile(r"[.,](\d{1,6})\d*")


@dataclass(frozen=True)
class Event:
    """One thing that happened: when, in seconds since 1970, what, to which container or service, and by whom."""

    at: float
    event: str
    of: str = ""
    details: str = ""
    by: str = ""

    def is_same(self, other: Event) -> bool:
        """Whether both tell of one thing; what people did is told by one source alone, and to the microsecond."""
        near = (self.event, self.of) == (other.event, other.of) and abs(self.at - other.at) < SAME_S
        return self == other if self.by else near

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at))
        details = " ".join(filter(None, (self.details, self.by and f"by {self.by}")))
        return f"{when}  {self.event:<12}  {self.of:<18}  {details}".rstrip()


def show(stack: Stack, options: argparse.Namespace) -> int:
    """Print what happened; with ``follow`` what happens from then on, too."""
    since = time.time() - seconds(options.since)
    told: list[Event] = []
    if kernel_log(stack) is None:
        say("the kernel's log can be read by root alone: what ran out of memory a while ago may be missing")
    while True:
        for event in (new := _others(gather(stack, since), told)):
            print(json.dumps(asdict(event)) if options.json else event, flush=True)
        told += new
        if not options.follow or stack.dry_run:
            return 0
        time.sleep(LOOK_S)
        # What was told stays known for as long as it can come up again.
        since = max(since, time.time() - FLAPS_S)
        told = [event for event in told if event.at >= since]


def seconds(text: str) -> int:
    """Return how long ``2h`` is, in seconds. Raises ``ConfigurationError`` for what is no length of time."""
    match = _SINCE.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"--since {text}: a length of time is a number and s, m, h or d, as in 2h")
    return int(match[1]) * _UNITS[match[2]]


def gather(stack: Stack, since: float) -> list[Event]:
    """Return what happened since then, in order; of what several sources tell, what the first of them does."""
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
    """Return what the kernel has logged since it started, None where we may not know."""
    if shutil.which("dmesg") is None:
        return None
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
    """Return what an event of the engine tells, None where it is of no interest."""
    at, facts = event["timeNano"] / 1e9, event["Actor"]["Attributes"]
    of = _short(stack, facts["name"])
    action, _, state = event["Action"].partition(": ")
    match action:
        case "start":
            return Event(at, "started", of)
        case "die":
            return Event(at, "ended", of, f"exit code {facts['exitCode']}")
        case "oom":
            return Event(at, "oom-kill", of, "a process took more than the memory limit")
        case "kill" if facts.get("signal") == "9":
            return Event(at, "killed", of, "SIGKILL, by way of the engine")
        case "restart":
            return Event(at, "restarted", of, "by way of the engine")
        case "destroy":
            return Event(at, "removed", of)
        case "health_status":
            return Event(at, state, of)
    return None


def without_flapping(events: Iterable[Event]) -> Iterator[Event]:
    """Tell of each time of bad health when it began, how often it came back, and that it is over.

    That a container is healthy after its start goes without saying.
    """
    sick: dict[str, tuple[Event, int, Event]] = {}  # the first event, how many, the last one

    def ends(of: str) -> Iterator[Event]:
        first, times, last = sick.pop(of)
        yield replace(first, details=f"{times} times" if times > 1 else "")
        if last.event == "healthy":
            yield replace(last, details="again")

    for event in events:
        if event.event not in ("healthy", "unhealthy"):
            yield event
            continue
        if event.of in sick and event.at - sick[event.of][2].at > FLAPS_S:
            yield from ends(event.of)
        if event.of in sick:
            first, times, _ = sick[event.of]
            sick[event.of] = first, times + (event.event == "unhealthy"), event
        elif event.event == "unhealthy":
            sick[event.of] = event, 1, event
    for of in list(sick):
        yield from ends(of)


def _of_containers(facts: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Event]:
    for each in facts:
        of, state, restarts = names[each["Id"]], each["State"], each["RestartCount"]
        if not state["StartedAt"].startswith("0001"):
            details = f"start {restarts + 1}, by the restart policy" if restarts else ""
            yield Event(_time(state["StartedAt"]), "started", of, details)
        if not state["FinishedAt"].startswith("0001"):
            # Once it runs again, the exit code is no longer there.
            reason = ", out of memory" if state["OOMKilled"] else ""
            code = "" if state["Running"] else f"exit code {state['ExitCode']}{reason}"
            yield Event(_time(state["FinishedAt"]), "ended", of, code)


def _of_logs(
    stack: Stack, facts: Iterable[Mapping[str, Any]], names: Mapping[str, str], since: float
) -> Iterator[Event]:
    """What the parents of worker processes say."""
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
    """Return a time as Docker or the kernel writes it, with any number of digits, of which Python 3.10 takes six."""
    text = _FRACTION.sub(lambda match: f".{match[1]:0<6}", text).replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()
