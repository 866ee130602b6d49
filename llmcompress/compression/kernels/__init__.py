"""Arithmetic alone: NumPy arrays in, NumPy arrays out, the same bytes as NNCF's own faster, and GPTQ up to rounding."""
