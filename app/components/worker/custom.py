"""The worker of this project: what its tasks share."""

from __future__ import annotations

import httpx

import aegis_worker


class CustomWorker(aegis_worker.Worker):
    """Takes every argument of ``arq.Worker``; what jobs share is opened in ``startup`` and closed in ``shutdown``."""

    async def startup(self) -> None:
        """Open what tasks find in their ``ctx``."""
        await super().startup()
        self.ctx["http"] = httpx.AsyncClient(timeout=30, follow_redirects=True)

    async def shutdown(self) -> None:
        """Close what ``startup`` opened, also where it got no further than half way."""
        if http := self.ctx.pop("http", None):
            await http.aclose()
        await super().shutdown()
