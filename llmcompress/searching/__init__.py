"""Which format for which weight under a size, a quality or a number of bits, proven against one format for all."""
