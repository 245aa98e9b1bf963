"""The systems that are measured, a short module for each: how to enqueue, and how to work."""
