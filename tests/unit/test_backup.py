"""Backups without a stack: the archive and what is wrong with one, encryption, names, counts, the journal."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from aegis_worker.queue import keys
from ops.config import ROOT, OpsError
from ops.config.load import load
from ops.data import archive, counts
from ops.engine import journal, sealed
from ops.engine.stack import Stack

MANIFEST = {"format": archive.FORMAT, "counts": {}}
CONTENT = os.urandom(100_000)
DATA = {"appendonlydir/base": CONTENT, "appendonlydir/list": b"base"}
COUNTS = {
    "1": {"keys": 9, "jobs": 3, "running": 1, "results": 2, "queues": {"arq:queue:a": 3}, "dead": {"a": 4}},
    "3": {"keys": 1, "jobs": 0, "running": 0, "results": 1, "queues": {}, "dead": {}},
}


def tar(**files: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        for name, text in files.items():
            member = tarfile.TarInfo(f"appendonlydir/{name}")
            member.size = len(text)
            out.addfile(member, io.BytesIO(text))
    made.seek(0)
    return made


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "backups")
    return Stack(load("prod", shell={}))


def write(stack: Stack) -> Path:
    file = archive.path(stack, 1_795_536_000)
    archive.write(stack, file, MANIFEST, tar(base=CONTENT, list=b"base"), {"config/env/base.env": b"A=1"})
    return file


def unpacked(stack: Stack, file: Path, identity: str = "") -> dict[str, bytes]:
    out = io.BytesIO()
    archive.unpack(stack, file, identity, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as read:
        return {member.name: read.extractfile(member).read() for member in read}  # type: ignore[union-attr]


def test_what_is_written_comes_back(stack: Stack) -> None:
    file = write(stack)
    assert archive.check(stack, file, "") == MANIFEST
    assert unpacked(stack, file) == DATA
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in file.parent.iterdir()] == ["prod-20261124T160000Z.tar"]


def test_its_checksums_are_those_of_sha256sum(stack: Stack, tmp_path: Path) -> None:
    with tarfile.open(write(stack)) as made:
        made.extractall(tmp_path / "out", filter="data")
    subprocess.run(["sha256sum", "--check", "--strict", sealed.SUMS], cwd=tmp_path / "out", check=True)


def test_an_archive_of_which_any_byte_differs_is_refused(stack: Stack, tmp_path: Path) -> None:
    whole = write(stack).read_bytes()
    damaged = tmp_path / "damaged.tar"
    for at in range(0, whole.rindex(b"A=1"), 9973):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = archive.check(stack, damaged, ""), unpacked(stack, damaged)
        except OpsError as error:
            found = str(error)
        # What pads a file in a tar says nothing.
        assert found == (MANIFEST, DATA) or "is damaged" in found


@pytest.mark.parametrize("length", [0, 100, 5000, 60_000, -11_000])
def test_one_that_ends_early_is_refused(stack: Stack, length: int) -> None:
    file = write(stack)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(OpsError, match="is damaged"):
        archive.check(stack, file, "")


def test_one_of_another_format_is_refused(stack: Stack) -> None:
    file = archive.path(stack, 0)
    archive.write(stack, file, {"format": 2}, tar(), {})
    with pytest.raises(OpsError, match="has format 2; this version reads 1"):
        archive.check(stack, file, "")


def test_one_that_cannot_be_finished_leaves_nothing(stack: Stack) -> None:
    with pytest.raises(tarfile.ReadError):
        archive.write(stack, archive.path(stack, 0), MANIFEST, io.BytesIO(b"no tar" * 100), {})
    assert not list(archive.FOLDER.iterdir())


def test_only_an_environments_own_backups_count(stack: Stack) -> None:
    archive.FOLDER.mkdir()
    ours = ["prod-20261124T160001Z.tar", "prod-20261124T160000Z.tar.age"]
    for name in [*ours, "prod-replaced-20261124T160000Z.tar", "prod-eu-20261124T160000Z.tar", "prod-x.tar.partial"]:
        (archive.FOLDER / name).touch()
    assert [file.name for file in archive.past("prod")] == ours


def encrypting(stack: Stack, variable: str, recipient: str) -> Stack:
    values = {**stack.environment.values, variable: recipient}
    return replace(stack, environment=replace(stack.environment, values=values))


def test_a_missing_program_is_said(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OpsError, match="BACKUP_AGE_RECIPIENT is set, and age is not installed here"):
        archive.need_encryption(encrypting(stack, "BACKUP_AGE_RECIPIENT", "age1x"))


@pytest.mark.skipif(not shutil.which("age"), reason="age is not installed: apt-get install age")
def test_encrypted_with_age(stack: Stack, tmp_path: Path) -> None:
    subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", tmp_path / "key"], check=True, capture_output=True, text=True)
    file = write(encrypting(stack, "BACKUP_AGE_RECIPIENT", recipient.stdout.strip()))
    assert file.name.endswith(".tar.age")
    assert file.read_bytes().startswith(b"age-encryption.org/")
    assert archive.check(stack, file, str(tmp_path / "key")) == MANIFEST
    assert unpacked(stack, file, str(tmp_path / "key"))["appendonlydir/base"] == CONTENT
    with pytest.raises(OpsError, match="AGE_IDENTITY"):
        archive.check(stack, file, "")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OpsError):
        archive.check(stack, file, str(tmp_path / "key"))


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg is not installed: apt-get install gpg")
def test_encrypted_with_gpg(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "g"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    key = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "backup@example.org", "default", "default"]
    subprocess.run(key, check=True, capture_output=True)
    try:
        file = write(encrypting(stack, "BACKUP_GPG_RECIPIENT", "backup@example.org"))
        assert file.name.endswith(".tar.gpg")
        assert b"manifest" not in file.read_bytes()
        assert archive.check(stack, file, "") == MANIFEST
        assert unpacked(stack, file)["appendonlydir/base"] == CONTENT
        with pytest.raises(OpsError, match=r"nobody@example\.org"):
            write(encrypting(stack, "BACKUP_GPG_RECIPIENT", "nobody@example.org"))
        assert archive.past("prod") == [file]
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], check=False)


def test_counts_that_differ_are_named() -> None:
    assert not counts.differences(COUNTS, COUNTS)
    other = {**COUNTS, "1": {**COUNTS["1"], "running": 0, "results": 3, "dead": {}}}
    assert counts.differences(COUNTS, other) == [
        "dead a in database 1: 0 instead of 4",
        "results in database 1: 3 instead of 2",
    ]
    assert counts.differences(COUNTS, other, more=True) == ["dead a in database 1: 0 instead of 4"]
    assert counts.differences(COUNTS, {"1": COUNTS["1"]})[0] == "keys in database 3: 0 instead of 1"


def test_counts_in_another_database() -> None:
    assert counts.swapped(COUNTS, "1", "0") == {"0": COUNTS["1"], "3": COUNTS["3"]}
    assert counts.swapped(COUNTS, "1", "3") == {"3": COUNTS["1"], "1": COUNTS["3"]}
    assert counts.described(COUNTS) == "3 jobs in queues, 3 results, 4 dead letters"


def test_it_counts_the_keys_that_the_worker_has() -> None:
    lua = (ROOT / "redis" / "survey.lua").read_text().replace("%", "")
    for prefix in (keys.JOB, keys.IN_PROGRESS, keys.RESULT, keys.dead(""), "worker:health:", "arq:queue"):
        assert f"'^{prefix}" in lua
    assert keys.health("arq:queue:a", "r").startswith("worker:health:")
    assert len(keys.dead("")) == 12, "survey.lua cuts it off"


def test_a_change_that_was_cut_short_is_known_until_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "path", lambda environment: tmp_path / environment)
    assert journal.unfinished("test", "restore") is None
    journal.write("test", "restore", outcome=journal.BEGUN, running={"redis": 1})
    assert journal.unfinished("test", "restore")["running"] == {"redis": 1}  # type: ignore[index]
    assert journal.unfinished("test", "upgrade-redis") is None
    journal.write("test", "down")
    assert journal.unfinished("test", "restore")
    journal.write("test", "restore", outcome="done")
    assert journal.unfinished("test") is None
    journal.write("test", "upgrade-redis", outcome=journal.BEGUN)
    journal.write("test", "destroy")
    assert journal.unfinished("test") is None
    with (tmp_path / "test").open("a") as file:
        file.write('{"at": 1}\n[]\n{"at":')  # by hand, or cut short
    assert [entry["event"] for entry in journal.read("test")] == [
        "restore",
        "down",
        "restore",
        "upgrade-redis",
        "destroy",
    ]
