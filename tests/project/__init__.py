"""A small project, as a team might have one: what the tests run by ``AEGIS_PROJECT=tests.project``.

The project in ``app/`` is the team's, who may add queues and settings to it, or take all of it away. So no test relies
on it, but those that are about the checkout as a whole, and those in ``tests/app``. Two queues are served, ``system``
and ``load_test``, which ``my-app load-test`` needs; ``media`` is served by nobody.
"""

from aegis_worker.project import Project

project = Project(
    settings="tests.project.settings:settings",
    queues="tests.project.queues",
    worker="tests.project.worker:ProjectWorker",
)
