"""An ``ov.Model``: read it, check it, edit its constants, set its device properties, decode with it."""
