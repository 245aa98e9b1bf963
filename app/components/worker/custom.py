"""The worker that a team makes its own."""

from __future__ import annotations

from typing import Any, Self

import httpx

from app.components.worker import runtime
from app.core.config import settings
from app.core.redis import create_pool


class CustomWorker(runtime.Worker):
    """Takes every argument of ``arq.Worker``; what jobs share is opened in ``startup`` and closed in ``shutdown``."""

    @classmethod
    def for_queue(cls, settings_class: type, **options: Any) -> Self:
        """Make the worker of a queue from its ``WorkerSettings``, with the project's pool and settings."""
        given = {name: value for name, value in vars(settings_class).items() if not name.startswith("_")}
        given.pop("health_check_key")  # names this host's first process, for `arq --check`; ours is made of `replica`
        ours: dict[str, Any] = {
            "redis_pool": create_pool(queue_name=given["queue_name"]),
            "backoff": runtime.Backoff(
                settings.WORKER_RETRY_BACKOFF_SECONDS, settings.WORKER_RETRY_BACKOFF_MAX_SECONDS
            ),
            "version": settings.APP_VERSION,
            "lease": settings.WORKER_LEASE_SECONDS,
            "blocked_log": settings.WORKER_BLOCKED_LOG_SECONDS,
            "blocked_exit": settings.WORKER_BLOCKED_EXIT_SECONDS,
        }
        return cls(**ours | given | options)

    async def startup(self) -> None:
        """Open what tasks find in their ``ctx``."""
        await super().startup()
        self.ctx["http"] = httpx.AsyncClient(timeout=30, follow_redirects=True)

    async def shutdown(self) -> None:
        """Close what ``startup`` opened, also where it got no further than half way."""
        if http := self.ctx.pop("http", None):
            await http.aclose()
        await super().shutdown()
