"""The machine, and what is done with a process of it."""
