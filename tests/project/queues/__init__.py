"""The queues of the tests' project. One of them is completed only when a worker loads it."""
