"""The other servers that `REDIS_IMAGE` may name: the same redis.conf, password, health check and scripts."""

from __future__ import annotations

import pytest

from tests.stack.conftest import MakeStack


@pytest.mark.parametrize(
    ("image", "version"), [("redis:7-alpine", "redis_version:7."), ("valkey/valkey:8-alpine", "valkey_version:8.")]
)
def test_the_stack_works_on(make_stack: MakeStack, image: str, version: str) -> None:
    stack = make_stack("prod", REDIS_IMAGE=image)
    stack.make("up")
    assert version in stack.redis("info", "server")
    assert stack.redis("config", "get", "appendonly").split() == ["appendonly", "yes"]
    assert stack.app("load-test", "io", "-n", "50")["done"] == 50
