from aegis_worker.project import configured
from tests.project.tasks.system import check_url, cleanup_temp_files, system_health_check


@configured("system")
class WorkerSettings:
    functions = [system_health_check, cleanup_temp_files, check_url]  # noqa: RUF012 - arq's own form
    queue_name = "arq:queue:system"
    max_jobs = 15
    job_timeout = 300
