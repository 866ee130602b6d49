"""Learned bits: what a compressed weight holds is trained, layout, size and speed stay."""
