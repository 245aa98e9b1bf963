"""Images and videos: few long jobs at a time, which need much CPU and memory. Needs the extra ``media``."""

from app.components.worker.queues import configured
from app.components.worker.tasks.media import process_video, resize_images


@configured("media")
class WorkerSettings:
    functions = [process_video, resize_images]  # noqa: RUF012 - arq's own form
    queue_name = "arq:queue:media"
    max_jobs = 5
    job_timeout = 1800
