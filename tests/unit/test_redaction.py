"""What counts as a secret, in how many ways it may be written, and that none of them gets through."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.look import diag
from ops.look.redaction import REDACTED, Redactor, secrets_of

SECRET = 'pä&s/"w+o<r>d\\1'
GO_JSON = json.dumps(SECRET)[1:-1].replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET),
        GO_JSON,
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        hashlib.sha256(SECRET.encode()).hexdigest(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    redactor = Redactor([SECRET, "other"])
    assert redactor.finds(f"a {written} b")
    clean = redactor.clean(f"a {written} b")
    assert written.strip('"') not in clean
    assert REDACTED in clean
    assert not redactor.finds(clean)


@settings(max_examples=25)
@given(st.binary(max_size=20), st.text(st.characters(codec="utf-8"), min_size=9, max_size=40), st.binary(max_size=20))
def test_within_something_that_is_base64(before: bytes, secret: str, after: bytes) -> None:
    assert Redactor([secret]).finds(base64.b64encode(before + secret.encode() + after).decode())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("API_TOKEN=x y", f"API_TOKEN={REDACTED}"),
        ('["DB_PASSWORD=x\\"y", "B=2"]', f'["DB_PASSWORD={REDACTED}", "B=2"]'),
        ('{"requirepass": "x", "port": "1"}', f'{{"requirepass": "{REDACTED}", "port": "1"}}'),
        ("SENTRY_DSN=x\nSIGNING_KEY=y", f"SENTRY_DSN={REDACTED}\nSIGNING_KEY={REDACTED}"),
        ("URL=redis://ada:x@host:1/0", f"URL=redis://{REDACTED}@host:1/0"),
        ("db0:keys=5,expires=0", "db0:keys=5,expires=0"),
        ("REDIS_SOCKET_KEEPALIVE=true WORKER_KEEP_RESULT_SECONDS=1", None),
        ("python:3.13@sha256:abc keyspace_hits:5", None),
    ],
)
def test_values_that_are_named_like_secrets(text: str, clean: str | None) -> None:
    assert Redactor([]).clean(text) == (clean or text)


def test_what_a_folder_has(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("one\n")
    (tmp_path / "redis_password.retired").write_text("a" * 64)
    (tmp_path / "worker_signing_key").write_text("k1\n\n k2\n")
    (tmp_path / "redis_acl").write_text(f"user a on #{'b' * 64} #{'c' * 64} ~* +@all\n")
    (tmp_path / "redis_ca.key").write_text("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBM\nQ==\n-----END PRIVATE KEY-----\n")
    (tmp_path / "redis_ca.crt").write_text("public")
    found = secrets_of(tmp_path, {"MY_TOKEN": "t", "EMPTY_TOKEN": "", "ENV": "prod"})
    assert found == {"one", "k1", "k2", "a" * 64, "b" * 64, "c" * 64, "MIGHAgEAMBM", "t"}
    assert secrets_of(tmp_path / "none", {}) == set()


def test_an_archive_is_searched(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("good", "nothing"), ("bad", f"x{SECRET}"), (f"named-{SECRET.encode().hex()}", "")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    assert diag.leaks(archive, Redactor([SECRET])) == ["bad", f"named-{SECRET.encode().hex()}"]
    assert diag.leaks(archive, Redactor(["another"])) == []
