"""What the serializer refuses: other formats, bombs, what is not signed or too large."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from arq.jobs import serialize_job
from msgspec import msgpack

from aegis_worker import payload as module
from aegis_worker.payload import Format, PayloadError, Serializer
from tests.conftest import ROOT
from tests.unit.conftest import OURS, job, result
from tests.unit.test_serializer import Point

KEY, OTHER_KEY = "k" * 32, "o" * 32


# -- what is refused -------------------------------------------------------------------------------------------------


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_loaded(ours: Serializer, tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "canary"
    sent = pickle.dumps(job(Canary(file)), protocol)
    said = "payload is a pickle, but WORKER_SERIALIZER is" if protocol > 1 else "payload is in no known format"
    with pytest.raises(PayloadError, match=said):
        ours.loads(sent)
    assert not file.exists()
    pickle.loads(sent)
    assert file.exists(), "the canary works"


def test_the_other_formats_are_told_apart() -> None:
    for wanted in ("msgpack", "json", "pickle"):
        for sent in {"msgpack", "json", "pickle"} - {wanted}:
            name = "a pickle" if sent == "pickle" else sent
            with pytest.raises(PayloadError, match=f"^payload is {name}, but WORKER_SERIALIZER is {wanted}$"):
                Serializer(wanted).loads(Serializer(sent).dumps(job()))


def test_pickle_is_arqs_own() -> None:
    ours = Serializer("pickle")
    assert ours.loads(serialize_job("task", (Point(1),), {}, None, 1_790_000_000_000)) == job(Point(1))
    assert pickle.loads(ours.dumps(job(Point(1)))) == job(Point(1))


def test_msgpack_and_json_of_other_languages_are_taken() -> None:
    record = {"t": None, "f": "task", "a": [1, "x"], "k": {}, "et": 1_790_000_000_000}
    assert Serializer("json").loads(json.dumps(record).encode()) == job(1, "x")
    assert Serializer("msgpack").loads(msgpack.encode(record)) == job(1, "x")


NESTED_EXT = b"\xc0"
for _ in range(20_000):
    NESTED_EXT = b"\xc9" + len(NESTED_EXT).to_bytes(4, "big") + b"\x02" + NESTED_EXT
HEAD = b"\x85\xa1t\xc0\xa1f\xa1x\xa1k\x80\xa2et\x00\xa1a"  # a job, as far as its arguments

BOMBS = {
    "empty": b"",
    "pickle's first byte": b"\x80",
    "signed, then nothing": b"S",
    "no map": b"\x91\xc0",
    "truncated": HEAD,
    "array of 4 billion": HEAD + b"\xdd\xff\xff\xff\xff",
    "arrays of a million, each in the other": HEAD + b"\xdd\x00\x10\x00\x00" * 200_000,
    "map of 4 billion": HEAD + b"\xdf\xff\xff\xff\xff",
    "text of 4 billion": HEAD + b"\xdb\xff\xff\xff\xff",
    "extension of 4 billion": HEAD + b"\xc9\xff\xff\xff\xff\x02",
    "deep": HEAD + b"\x91" * 1_000_000 + b"\xc0",
    "deep maps": HEAD + b"\x81\xa0" * 500_000 + b"\xc0",
    "deep extensions": HEAD + NESTED_EXT,
    "arguments are a number": HEAD + b"\x05",
    "unknown extension": HEAD + b"\xd4\x7fx",
    "negative extension": HEAD + b"\xd4\xfex",
    "no text": HEAD + b"\x91\xa1\xff",
    "no date": HEAD + b"\x91" + msgpack.encode(msgpack.Ext(list(module._MAKERS).index("date"), b"\xa3abc")),
    "json, deep": b'{"a":' + b"[" * 1_000_000,
    "json, deep objects": b'{"a":' * 200_000,
    "json, deep tags": b'{"$tuple":' * 50_000 + b"[]" + b"}" * 50_000,
    "json, a number of a million digits": b'{"a":' + b"9" * 1_000_000 + b"}",
    "json, truncated": b'{"a":"',
    "json, no record": b'{"$int":"0x5"}',
    "json, no text": b'{"a":"\xff"}',
    "json, an unhashable key": b'{"a":[{"$dict":[[[],1]]}],"k":{},"f":"x","et":0,"t":null}',
    "json, too long a time": b'{"a":[{"$timedelta":[1e300,0,0]}],"k":{},"f":"x","et":0,"t":null}',
    "json, unknown tag": b'{"a":[{"$eval":"1"}],"k":{},"f":"x","et":0,"t":null}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
def test_a_bomb_is_an_error_and_takes_little_memory(bomb: bytes, keys: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for format in OURS:
        serializer = Serializer(format, signing_keys=keys)
        data = module.SIGNED + module._sign(serializer._keys[0], bomb) + bomb if keys else bomb
        with pytest.raises(Exception) as caught:  # noqa: PT011 - arq takes any
            serializer.loads(data)
        assert isinstance(caught.value, Exception)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# -- signatures ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["msgpack", "json", "pickle"])
def format(request: pytest.FixtureRequest) -> Format:
    return request.param  # type: ignore[no-any-return]


def test_what_is_signed_is_taken_by_who_has_the_key(format: Format) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    sent = signed.dumps(job(1))
    assert signed.loads(sent) == job(1)
    with pytest.raises(PayloadError, match="signed with a key that is not in WORKER_SIGNING_KEY, or it was changed"):
        Serializer(format, signing_keys=[OTHER_KEY]).loads(sent)
    with pytest.raises(PayloadError, match="WORKER_SIGNING_KEY is not set, so it cannot be checked"):
        Serializer(format).loads(sent)


def test_the_first_key_signs_and_each_verifies(format: Format) -> None:
    old, both, new = (Serializer(format, signing_keys=keys) for keys in ([KEY], [OTHER_KEY, KEY], [OTHER_KEY]))
    assert both.loads(old.dumps(job())) == job()
    assert new.loads(both.dumps(job())) == job()
    with pytest.raises(PayloadError):
        new.loads(old.dumps(job()))


def test_with_a_key_nothing_unsigned_is_loaded(format: Format, tmp_path: Path) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    file = tmp_path / "canary"
    for sent in (Serializer(format).dumps(job()), pickle.dumps(job(Canary(file)))):
        with pytest.raises(PayloadError, match="payload is not signed, but WORKER_SIGNING_KEY is set"):
            signed.loads(sent)
    assert not file.exists()


def test_no_byte_of_what_is_signed_can_be_changed(format: Format) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    sent = signed.dumps(job("x"))
    for at in range(len(sent)):
        for changed in (sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :], sent[:at]):
            with pytest.raises(PayloadError):
                signed.loads(changed)
    with pytest.raises(PayloadError):
        signed.loads(sent + b"\0")


def test_a_signature_made_for_something_else_is_none() -> None:
    import hmac

    payload = Serializer().dumps(job())
    elsewhere = hmac.digest(KEY.encode(), payload, "sha256")
    with pytest.raises(PayloadError):
        Serializer(signing_keys=[KEY]).loads(module.SIGNED + elsewhere + payload)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
def test_a_payload_has_a_largest_size_both_ways(format: Format, keys: tuple[str, ...]) -> None:
    small, large = (Serializer(format, signing_keys=keys, max_bytes=most) for most in (10_000, 1_000_000))
    assert small.loads(small.dumps(job(b"x" * 5000)))
    with pytest.raises(
        PayloadError, match=r"payload of 1\d,\d\d\d bytes is larger than 10,000 bytes, which is WORKER_MAX"
    ):
        small.dumps(job("x" * 10_000))
    for size in (10_000, 30_000):  # before and after it is decoded
        with pytest.raises(PayloadError, match="larger than"):
            small.loads(large.dumps(job("x" * size)))


def test_a_result_has_room_beside_the_largest_payload(format: Format) -> None:
    small = Serializer(format, max_bytes=10_000)
    record = result("y" * 9000) | {"a": ("x" * 9900,)}
    assert small.loads(small.dumps(record)) == record
    said = "with the job's arguments, is larger than 20,000 bytes, which is twice WORKER_MAX_PAYLOAD_BYTES"
    with pytest.raises(PayloadError, match=said):
        small.dumps(result("y" * 20_000))


# -- as a file of its own --------------------------------------------------------------------------------------------


def test_it_needs_msgspec_alone(tmp_path: Path) -> None:
    (tmp_path / "payloads.py").write_text((ROOT / "library" / "aegis_worker" / "payload.py").read_text())
    check = "import payloads, sys; assert not {'app', 'arq', 'redis', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)
