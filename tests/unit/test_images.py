"""The pure part of ops/engine/images.py: which image is stood in for, and with which commands."""

from pathlib import Path

import pytest

from ops.config import OpsError
from ops.engine.images import FAMILIES, family_of, import_argv, mmdebstrap_argv, source_lines, upstream

HOST = "Debian http://mirror.example/debian/\nDebian http://other.example/debian/\n"
SECURITY = "Debian-Security http://mirror.example/debian-security/\n"


@pytest.mark.parametrize(
    ("image", "family"),
    [
        ("python:3.13", "python:3.13"),
        ("python:3.13-slim-trixie", "python:3.13"),
        ("redis:8-alpine", "redis:8"),
        ("redis:8.0.2", "redis:8"),
        ("docker.io/library/redis:8-alpine", "redis:8"),
        ("library/redis:7.4-alpine", "redis:7"),
        ("docker.io/valkey/valkey:8-alpine", "valkey/valkey:8"),
    ],
)
def test_known_images(image: str, family: str) -> None:
    assert family_of(image) is FAMILIES[family]


@pytest.mark.parametrize(
    "image", ["redis", "redis:80", "redis:6-alpine", "python:3.12-slim", "ghcr.io/someone/redis:8", "nginx:1"]
)
def test_unknown_image_is_named_in_the_error(image: str) -> None:
    with pytest.raises(OpsError, match=image):
        family_of(image)


def test_a_digest_has_no_stand_in() -> None:
    with pytest.raises(OpsError, match="digest"):
        family_of("python:3.13-slim-trixie@sha256:" + "0" * 64)


def test_sources_are_the_hosts_own_with_security_where_it_has_it() -> None:
    redis = FAMILIES["redis:8"]
    main = "deb http://mirror.example/debian/ trixie main"
    assert source_lines(redis, HOST) == [main]
    assert source_lines(redis, HOST + SECURITY) == [
        main,
        "deb http://mirror.example/debian-security/ trixie-security main",
    ]
    assert source_lines(redis, "") == []


def test_python_tree() -> None:
    argv = mmdebstrap_argv(FAMILIES["python:3.13"], ["deb http://mirror.example/ trixie main"], Path("/tmp/a b/v"))
    assert argv[-3:] == ["trixie", "-", "deb http://mirror.example/ trixie main"]
    assert any(arg.startswith("--include=python3,python3-venv,") for arg in argv)
    assert any(arg.endswith(">'/tmp/a b/v'") for arg in argv)
    assert not any(arg.startswith("--essential-hook") for arg in argv)


@pytest.mark.parametrize(("name", "user"), [("redis:8", "redis"), ("valkey/valkey:8", "valkey")])
def test_a_servers_user_has_the_official_numbers(name: str, user: str) -> None:
    (hook,) = [arg for arg in mmdebstrap_argv(FAMILIES[name], [], Path("/v")) if "essential-hook" in arg]
    assert f"{user}:x:999:1000:" in hook
    assert 'chown 999:1000 "$1/data"' in hook


def test_valkey_goes_by_redis_names_too() -> None:
    hooks = [arg for arg in mmdebstrap_argv(FAMILIES["valkey/valkey:8"], [], Path("/v")) if "ln -s" in arg]
    assert len(hooks) == 1
    assert 'ln -s valkey-server "$1/usr/bin/redis-server"' in hooks[0]
    assert 'ln -s valkey-cli "$1/usr/bin/redis-cli"' in hooks[0]


def test_import_keeps_the_name_and_says_what_it_is() -> None:
    argv = import_argv("redis:8-alpine", FAMILIES["redis:8"], "5:8.0.2-3")
    assert argv[:2] == ["docker", "import"]
    assert argv[-2:] == ["-", "redis:8-alpine"]
    assert {
        "--change=LABEL aegis.stand-in=true",
        "--change=LABEL org.opencontainers.image.version=5:8.0.2-3",
        "--change=VOLUME /data",
        '--change=CMD ["redis-server"]',
    } <= set(argv)
    assert "--change=VOLUME /data" not in import_argv("python:3.13", FAMILIES["python:3.13"], "3.13.5-1")


@pytest.mark.parametrize(
    ("debian", "expected"), [("5:8.0.2-3+deb13u1", "8.0.2"), ("3.13.5-1", "3.13.5"), ("8.1.1+dfsg1-3", "8.1.1")]
)
def test_upstream_version(debian: str, expected: str) -> None:
    assert upstream(debian) == expected
