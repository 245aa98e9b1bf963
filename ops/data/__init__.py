"""What Redis holds: saved, counted, restored, moved to another server."""
