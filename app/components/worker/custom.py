"""The worker of this project. It opens what its tasks share."""

from __future__ import annotations

import httpx

import aegis_worker


class CustomWorker(aegis_worker.Worker):
    """Takes every argument of ``arq.Worker``. Open what jobs share in ``startup``, and close it in ``shutdown``."""

    async def startup(self) -> None:
        """Open what tasks use by their argument ``ctx``."""
        await super().startup()
        self.ctx["http"] = httpx.AsyncClient(timeout=30, follow_redirects=True)

    async def shutdown(self) -> None:
        """Close what ``startup`` opened, also if ``startup`` did not finish."""
        if http := self.ctx.pop("http", None):
            await http.aclose()
        await super().shutdown()
