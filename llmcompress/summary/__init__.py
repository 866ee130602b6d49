"""Many artifacts and their reports side by side: what may be compared, the trade-offs, tables, and one page."""

from llmcompress.summary.comparability import Basis
from llmcompress.summary.comparison import Comparison, compare
from llmcompress.summary.page import check_page_path, page, write_page
from llmcompress.summary.rows import FailedRow, Row
from llmcompress.summary.table import NOT_MEASURED, Line, csv_text, lines, markdown
from llmcompress.summary.trade_offs import Point, TradeOff

__all__ = [
    "NOT_MEASURED",
    "Basis",
    "Comparison",
    "FailedRow",
    "Line",
    "Point",
    "Row",
    "TradeOff",
    "check_page_path",
    "compare",
    "csv_text",
    "lines",
    "markdown",
    "page",
    "write_page",
]
