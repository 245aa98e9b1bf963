"""The worker of the tests' project: it shares something with its tasks, as a team's worker does."""

from __future__ import annotations

import aegis_worker


class ProjectWorker(aegis_worker.Worker):
    async def startup(self) -> None:
        await super().startup()
        self.ctx["shared"] = "opened"

    async def shutdown(self) -> None:
        self.ctx.pop("shared", None)
        await super().shutdown()
