"""Make the pictures in docs/images/ anew: the page of a comparison and a model card, as a browser shows them.

    python scripts/screenshots.py    # needs Chromium, and pip install "llmcompress[dev]"

They show the example cards' reports in model_cards/, next to which nothing else is needed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import chromium, find_chromium
from markdown_it import MarkdownIt

import llmcompress

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ROOT / "model_cards"
MODELS = tuple(EXAMPLES / f"demo-{name}-ov" for name in ("none", "int8", "int8-ptq", "int4-mixed", "int4"))
WIDTHS = (390, 1280, 1920)
CARD_WIDTH, SCREEN_HEIGHT = 1280, 900

# The Hub's and GitHub's column of text, type and tables, as far as they decide how long a card is.
_CARD_STYLE = """
body { margin: 32px auto; max-width: 860px; padding: 0 24px; color: #1f2328; background: #fff;
  font: 16px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; overflow-wrap: break-word; }
h1, h2 { margin: 24px 0 16px; line-height: 1.25; border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; }
h1 { font-size: 2em; } h2 { font-size: 1.5em; }
p, table, pre, ul, details { margin: 0 0 16px; }
table { border-collapse: collapse; display: block; overflow: auto; }
th, td { padding: 6px 13px; border: 1px solid #d1d9e0; }
tr:nth-child(2n) { background: #f6f8fa; }
code { font: 85%/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: #818b981f; padding: .2em .4em;
  border-radius: 6px; }
pre { background: #f6f8fa; padding: 16px; overflow: auto; border-radius: 6px; }
pre code { background: none; padding: 0; }
summary { cursor: pointer; }
"""


def card_page(card: str) -> str:
    """A card as HTML, as a renderer of GitHub's Markdown makes it, without the front matter."""
    body = card.split("\n---\n", 1)[1]
    html = MarkdownIt("gfm-like", {"html": True}).render(body)
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><style>{_CARD_STYLE}</style><body>{html}</body></html>'
    )


def main() -> None:
    """Write every picture, and say what became of it."""
    program = find_chromium()
    if program is None:
        sys.exit("there is no Chromium on the path: apt install chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch, chromium(program) as tab:
        page = llmcompress.write_page(llmcompress.compare(MODELS), Path(scratch) / "compare.html")
        for width in WIDTHS:
            tab.open(page, width, SCREEN_HEIGHT)
            _tell(tab.screenshot(IMAGES / f"compare-{width}.png"))
        card = Path(scratch) / "card.html"
        card.write_text(card_page((EXAMPLES / "demo-int4-ov" / "README.md").read_text(encoding="utf-8")))
        tab.open(card, CARD_WIDTH, SCREEN_HEIGHT)
        tab.resize(CARD_WIDTH, int(tab.evaluate("document.documentElement.scrollHeight")))
        _tell(tab.screenshot(IMAGES / "card.png"))


def _tell(path: Path) -> None:
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
