from tests.project.tasks.media import resize


class WorkerSettings:
    """It lacks the decorator, and its own queue's name."""

    functions = [resize]  # noqa: RUF012 - arq's own form
    max_jobs = 5
    job_timeout = 1800
