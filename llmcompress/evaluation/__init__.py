"""How close a model is to the original, measured on the runtime that serves it."""
