"""Short tasks: one that answers, one with arguments, one without."""

from __future__ import annotations

from typing import Any


async def system_health_check(ctx: dict[str, Any]) -> dict[str, Any]:
    info = await ctx["redis"].info("server")
    return {"redis_version": info["redis_version"], "shared": ctx["shared"]}


async def cleanup_temp_files(ctx: dict[str, Any], max_age_s: float = 86_400) -> dict[str, Any]:
    return {"deleted": 0}


async def check_url(ctx: dict[str, Any], url: str, expect: int = 200) -> int:
    """It asks nobody."""
    if not url.startswith("http"):
        raise ValueError(f"{url} must begin with http")
    return expect
