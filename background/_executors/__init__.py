"""The executors: siblings that don't know of one another."""
