"""What a faster way cannot answer for: the ordinary one is taken."""


class DoubtError(Exception):
    """A way around NNCF does not say what becomes of these weights; the whole way does."""
