"""Docker and Compose: which commands there are, how they are run, and what a change leaves on record."""
