"""The background work of this project: settings, queues, tasks and worker."""
