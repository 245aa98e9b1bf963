from aegis_worker.project import configured
from tests.project.tasks.load_test import failure_task, light_cpu_task, light_io_task, light_memory_task


@configured("load_test")
class WorkerSettings:
    functions = [light_cpu_task, light_io_task, light_memory_task, failure_task]  # noqa: RUF012 - arq's own form
    queue_name = "arq:queue:load_test"
    max_jobs = 30
    job_timeout = 600
    keep_result = 300
