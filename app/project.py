"""Where the library finds this project's settings, queues and worker; ``AEGIS_PROJECT`` names this module."""

from aegis_worker.project import Project

project = Project(
    settings="app.core.config:settings",
    queues="app.components.worker.queues",
    worker="app.components.worker.custom:CustomWorker",
)
