"""This project's background work: its settings, queues, tasks and worker."""
