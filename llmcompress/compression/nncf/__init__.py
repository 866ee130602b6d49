"""Every touch of NNCF: what is called, patched, read and taken over."""
