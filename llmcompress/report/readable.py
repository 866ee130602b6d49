"""Reports as people read them where Python prints them: lines in a console, a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping

from llmcompress.report.record import Record


class Readable(Record):
    """A report with the few facts that it is opened for; all of it is in its fields and its JSON."""

    def facts(self) -> Mapping[str, str]:
        """Names and values, in the order in which they are read: of fields those that are one value or a list."""
        found = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and "\n" not in value and value:
                found[name] = value
            elif isinstance(value, (bool, int, float)):
                found[name] = f"{value:,}" if type(value) is int else str(value)
            elif isinstance(value, (tuple, dict)) and value:
                found[name] = f"{len(value):,}"
        return found

    def __str__(self) -> str:
        facts = self.facts()
        width = max(map(len, facts), default=0)
        return "\n".join([type(self).__name__, *(f"  {name:{width}}  {text}" for name, text in facts.items())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self.facts().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
