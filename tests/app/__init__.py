"""Tests of what is the team's own, in ``app/``: its tasks, its worker, its queues and its page of variables.

A team edits them with its tasks, and deletes those of example tasks that it deletes. No other test needs them.
"""
