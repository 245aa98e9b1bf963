"""The Redis scripts as they are composed: they load, their headers are right, and their names are those of Python."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import cron
from arq.connections import ArqRedis

from aegis_worker import NewJob, enqueue_many
from aegis_worker.queue import admin, keys, replicas, scripts
from aegis_worker.queue.settlement import Completed, Died, Lease, Retried, Returned, Settlement
from aegis_worker.worker.cron import Cron

QUEUE = "arq:queue:test"
NAMES = sorted(path.stem for path in scripts.LUA.glob("*.lua"))
PIECES = sorted(path.stem for path in scripts.LUA.glob("lib/*.lua"))
FILES = [*NAMES, *(f"lib/{piece}" for piece in PIECES)]
SETTLEMENTS: list[Settlement] = [
    Completed(Lease("a", "t"), b"result"),
    Died(Lease("b", "t"), b"result", 1000, "{}", b"payload"),
    Retried(Lease("c", "t"), 1000, 1, "raised"),
    Returned(Lease("d", "t"), 1000),
]


def text_of(file: str) -> str:
    return (scripts.LUA / f"{file}.lua").read_text()


def named(file: str, line: str) -> list[str]:
    """Return the names in a file's lines ``-- include: …`` or ``-- keys: …``."""
    return [
        name for names in re.findall(rf"^ *-- {line}: (.+)$", text_of(file), re.MULTILINE) for name in names.split(", ")
    ]


def code_of(file: str) -> str:
    """Return a script without comments."""
    return re.sub(r"--.*", "", re.sub(r"--\[\[.*?\]\]", "", text_of(file), flags=re.DOTALL))


@pytest.mark.parametrize("name", NAMES)
async def test_every_script_loads(redis: ArqRedis, name: str) -> None:
    text = scripts.compose(name)
    assert await redis.script_load(text)
    assert text.startswith("#!lua") == text_of(name).startswith("#!lua")
    assert not re.search(r"--\s*(include|keys)\b", text), "a line that was not replaced"


@pytest.mark.parametrize("file", FILES)
def test_a_file_has_what_it_uses_and_nothing_else(file: str) -> None:
    code = code_of(file)
    assert re.search(r"(arq|worker):", code) is None, "keys.py has the names"
    for name in named(file, "keys"):
        assert re.search(rf"\b{name}\b", code), f"{name} is not used"
    for piece in named(file, "include"):
        defined = re.findall(r"^local (?:function )?(\w+)", text_of(f"lib/{piece}"), re.MULTILINE)
        assert any(re.search(rf"\b{name}\b", code) for name in defined), f"{piece} is not used"


def test_every_piece_is_included_somewhere() -> None:
    assert {piece for name in NAMES for piece in named(name, "include")} == set(PIECES)


def test_the_names_have_the_values_of_python() -> None:
    assert scripts.compose("recall").count(f"local IN_PROGRESS = '{keys.IN_PROGRESS}'\n") == 1
    assert f"local IN_PROGRESS, JOB, RETRY = '{keys.IN_PROGRESS}', '{keys.JOB}', '{keys.RETRY}'\n" in scripts.compose(
        "claim"
    )


# -- headers ---------------------------------------------------------------------------------------------------------


def listed(name: str, what: str) -> int:
    """Return how many keys or arguments a script's header lists by number."""
    header = re.search(r"--\[\[.*?\]\]", text_of(name), re.DOTALL)
    assert header
    numbers = [int(number) for number in re.findall(rf"^  {what}\[(\d+)\] ", header[0], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert re.search(r"^  Returns ", header[0], re.MULTILINE)
    return len(numbers)


@pytest.fixture
async def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """How many keys and arguments callers give to each script."""
    given: dict[str, tuple[int, int]] = {}
    compose = scripts.compose
    replies: dict[str, Any] = {
        "claim": [None, 0, 0, 0, [b"\xff"], [b"1"], [b"payload"], [], []],
        "rename": b"renamed",
        "enqueue": [1],
        **dict.fromkeys(("discard", "purge", "tick"), 0),
    }

    async def call(script: scripts.Script, keys: Any, args: Any, call: Any = None) -> Any:
        name = next(name for name in NAMES if compose(name) == script._source)
        given[name] = len(keys), len(list(args))
        return replies.get(name, [])

    monkeypatch.setattr(scripts.Script, "__call__", call)
    redis = ArqRedis()
    ours = scripts.Scripts(redis.execute_command, QUEUE, lease_s=12, ends_s=300)
    await ours.claim(1)  # the job's id is not UTF-8, so that it is renamed as well
    leases = [settlement.lease for settlement in SETTLEMENTS]
    await ours.renew(leases)
    await ours.recall(leases)
    await ours.settle(SETTLEMENTS)
    await enqueue_many(redis, [NewJob("f", unique="key")], queue_name=QUEUE)
    await admin.purge(redis, QUEUE, 1)
    await admin.revive(redis, QUEUE, ["a"])
    await admin.discard(redis, QUEUE, ["a"])
    await replicas.record(redis, QUEUE, "r0", {}, interval_s=1)
    now = datetime.now(UTC)
    await Cron(redis, QUEUE, "r0", [cron(enqueue_many, run_at_startup=True)]).enqueue_due(now, timedelta(1))
    await scripts.Script(redis.execute_command, "wake")(["bell"], [])  # as Listener and Keeper do
    return given


#: how many arguments follow the numbered ones in these calls
MORE = {"discard": 1, "enqueue": 5, "recall": 8, "renew": 8, "revive": 1, "settle": 4 * 2 + 4 * 4 + 2 + 3 + 2}


@pytest.mark.parametrize("name", NAMES)
def test_a_header_lists_what_callers_give(calls: dict[str, tuple[int, int]], name: str) -> None:
    assert calls[name] == (listed(name, "KEYS"), listed(name, "ARGV") + MORE.get(name, 0))


@pytest.mark.parametrize("name", NAMES)
def test_a_script_uses_what_its_header_lists(name: str) -> None:
    code = code_of(name)
    for what in ("KEYS", "ARGV"):
        used = {int(number) for number in re.findall(rf"{what}\[(\d+)\]", code)}
        numbered = set(range(1, listed(name, what) + 1))
        assert (
            used == numbered or (not used and f"unpack({what})" in code) or (not numbered and f"ipairs({what})" in code)
        )


# -- settlements -----------------------------------------------------------------------------------------------------


def test_every_field_of_a_settlement_is_sent_once() -> None:
    for settlement in SETTLEMENTS:
        kind = scripts.KINDS[type(settlement)]
        fields = [field.name for field in dataclasses.fields(settlement)]
        assert sorted(("lease", kind.own, *kind.shared)) == sorted(fields)
    assert {type(settlement) for settlement in SETTLEMENTS} == set(scripts.KINDS)


@pytest.mark.parametrize("kind", scripts.KINDS.values(), ids=lambda kind: kind.name)
def test_settle_reads_the_fields_of_a_group_in_the_order_in_which_they_are_sent(kind: scripts.Kind) -> None:
    reading = re.search(rf"kind == '{kind.name}' then\n +(.+) = (.+)\n +return n \+ (\d)", text_of("settle"))
    if not kind.shared:
        assert reading is None
        return
    assert reading
    assert reading[1].split(", ") == [f"group.{name}" for name in kind.shared]
    places = ["ARGV[n]", "ARGV[n + 1]", "ARGV[n + 2]"]
    assert reading[2].split(", ") == places[: len(kind.shared)]
    assert int(reading[3]) == len(kind.shared)
