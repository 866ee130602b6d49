"""The model card of an artifact, made from its manifest and its reports and nothing else.

card.py          render, and write as README.md
content.py       manifest and reports -> what the page says
front_matter.py  manifest and reports -> the metadata that the Hub reads
markdown.py      text of others, made inert
sandbox.py       templates, rendered within bounds
card.md.j2       the packaged template
"""

from llmcompress.cards.card import CardReport, render_card, write_card

__all__ = ["CardReport", "render_card", "write_card"]
