"""The machine: memory, environment, cache, the one atomic write, JSON, progress, a worker process and its death."""
