"""Fuzzes what a worker does with bytes from Redis: ``python -m tests.fuzz.decoder seconds|runs N``.

atheris mutates payloads and keeps those that reach code which none before reached. A payload is read or is an error
that arq catches; whatever else comes of it, a decoder that does not end among them, ends the process with a message,
and the payload is kept in ``.local/fuzz/``.
"""

from __future__ import annotations

import hmac
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aegis_worker.payload"]):
    from aegis_worker import payload as module
from aegis_worker.payload import Serializer
from tests.conftest import ROOT
from tests.unit.test_serializer_refusals import BOMBS

KEY = "k" * 32
SERIALIZERS = {"msgpack": Serializer(), "json": Serializer("json"), "signed": Serializer(signing_keys=[KEY])}
SEED = 1
MOST_BYTES = 4096
ENDS_WITHIN_S = 5  #: one payload
RECORD = {"t": None, "f": "task", "a": ([(1, {2}, b"x", 1 << 70)], ValueError("x")), "k": {"$a": 1.5}, "et": 0}


def target(serializer: Serializer) -> Callable[[bytes], None]:
    """Return what takes any bytes, and raises where reading them raises what arq does not catch."""

    def read(data: bytes) -> None:
        try:
            record = serializer.loads(data)
        except MemoryError:
            raise
        except Exception:
            return
        assert isinstance(record, dict)
        assert isinstance(record["a"], tuple)

    def read_signed(data: bytes) -> None:
        read(data)
        digest = hmac.digest(serializer._keys[0], data, "sha256")
        read(module.SIGNED + digest + data)  # what is behind the signature, which no fuzzer finds

    return read_signed if serializer._keys else read


def fuzz(name: str, limit: str) -> None:
    serializer = SERIALIZERS[name]
    found = ROOT / ".local" / "fuzz"
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = [serializer.dumps(RECORD), *(bomb for bomb in BOMBS.values() if len(bomb) <= MOST_BYTES)]
        for number, seed in enumerate(seeds):
            Path(folder, str(number)).write_bytes(seed)
        options = [limit, f"-seed={SEED}", f"-max_len={MOST_BYTES}", f"-timeout={ENDS_WITHIN_S}", "-rss_limit_mb=512"]
        atheris.Setup(["decoder", *options, f"-artifact_prefix={found}/", folder], target(serializer))
        atheris.Fuzz()  # ends the process


def main(unit: str, amount: str) -> int:
    limit = f"-{'max_total_time' if unit == 'seconds' else 'runs'}={int(amount)}"
    context = multiprocessing.get_context("spawn")
    codes = []
    for name in SERIALIZERS:
        print(f"-- {name}", flush=True)
        process = context.Process(target=fuzz, args=(name, limit))
        process.start()
        process.join()
        codes.append(process.exitcode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
