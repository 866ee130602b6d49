"""Where intermediate results are kept, to be used again by later runs; every part can be made anew.

place.py     the directory, and keys of content
holding.py   what a process is using is held against pruning
pruning.py   what is kept, how large and how long unused, and its removal
"""

from llmcompress.cache.holding import hold, hold_if_kept
from llmcompress.cache.place import cache_dir, content_key

__all__ = ["cache_dir", "content_key", "hold", "hold_if_kept"]
