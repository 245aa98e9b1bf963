"""`python -m benchmarks.peers NAME work|produce PORT SLOTS RECORD`, under the peer's own Python.

A producer reads a command a line, and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.peers import tasks
from benchmarks.peers.peer import Peer

LOOK_S = 0.002
PICKED_UP_WITHIN_S = 10.0


async def time_pick_ups(peer: Peer, samples: int, longest_pause_s: float) -> list[list[float]]:
    """For each sample, the seconds it waited and how many jobs had run before."""
    found = []
    for _ in range(samples):
        await asyncio.sleep(random.uniform(0.02, longest_pause_s))
        size, asked = tasks.record.stat().st_size, time.time()
        await peer.enqueue("now", asked)
        while tasks.record.stat().st_size == size:
            if time.time() - asked > PICKED_UP_WITHIN_S:
                raise TimeoutError(f"not picked up within {PICKED_UP_WITHIN_S:g} s")
            await asyncio.sleep(LOOK_S)
        found.append([float(part) for part in tasks.record.read_text().splitlines()[-1].split()])
    return found


async def produce(peer: Peer) -> None:
    await peer.connect()
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        command, numbers = words[0], [float(word) for word in words[1:]]
        begun = time.time()
        match command, numbers:
            case "noops", [count]:
                await peer.enqueue_noops(int(count))
                answer: object = time.time() - begun
            case "sleeps", [count, seconds]:
                for _ in range(int(count)):
                    await peer.enqueue("sleep", seconds)
                answer = begun
            case "pick-ups", [samples, longest_pause_s]:
                answer = await time_pick_ups(peer, int(samples), longest_pause_s)
            case _:
                raise ValueError(f"unknown command: {words}")
        print(json.dumps(answer), flush=True)


def main(name: str, role: str, port: str, slots: str, record: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    tasks.record = Path(record)
    peer: Peer = import_module(f"benchmarks.peers.{name}").PEER(int(port), int(slots))
    if role == "work":
        peer.work()
    else:
        type(peer).run(produce(peer))


if __name__ == "__main__":
    main(*sys.argv[1:])
