"""Names the settings, queues and worker of this project. ``AEGIS_PROJECT`` names this module to the library."""

from aegis_worker.project import Project

project = Project(
    settings="app.core.config:settings",
    queues="app.components.worker.queues",
    worker="app.components.worker.custom:CustomWorker",
)
