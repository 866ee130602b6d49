"""What a model can do without: chosen, taken away, healed, and saved as an ordinary checkpoint."""
