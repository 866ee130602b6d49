"""What tuning found as one HTML page: gain against KL divergence with the front, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmcompress.report.benchmark import rate_text
from llmcompress.report.estimate import interval_text
from llmcompress.report.text import settings_text, size_text
from llmcompress.report.tuning import Trial, TuneReport
from llmcompress.summary.charts import trade_off_chart
from llmcompress.summary.page import Filters, interval_below, put_page, rendered
from llmcompress.summary.trade_offs import Point, TradeOff


def gain_text(trial: Trial) -> str:
    """The gain with its interval; nothing for the default, whose gain is 1 by definition."""
    return "" if trial.gain is None or not trial.properties else interval_text(trial.gain, ".3g")


def remark_text(trial: Trial, *, reason: bool = True) -> str:
    """Whether it is on the front, and what became of it."""
    words = ["front"] if trial.on_front else []
    if trial.status not in ("default", "measured"):
        words.append(f"{trial.status}: {trial.reason}" if trial.reason and reason else trial.status)
    return (", " if reason else "\n").join(words)


def write_tuning_page(report: TuneReport, path: str | Path) -> Path:
    """Write the page by one rename; an earlier page of ours is replaced.

    Raises:
        UsageError: There is something else at ``path``, or no directory for it.
        WriteError: The disk refuses; an earlier page is still there.
    """
    return put_page(tuning_page(report), path)


def tuning_page(report: TuneReport) -> str:
    """The page as text: without network and script, as that of a comparison."""
    from markupsafe import Markup

    filters: Filters = {
        "size": size_text,
        "rate": rate_text,
        "settings": settings_text,
        "gain": gain_text,
        "remark": remark_text,
        "interval": interval_text,
        "interval_below": interval_below,
    }
    return rendered(Path(__file__).parent, filters, report=report, chart=Markup(_chart(report.trials)))


def _chart(trials: Sequence[Trial]) -> str:
    """Of what was scored, as SVG."""
    points = []
    for number, trial in enumerate(trials):
        if trial.gain is None or trial.divergence is None:
            continue
        lost, varies = trial.divergence.kl_divergence, bool(trial.properties)
        points.append(
            Point(
                row=number,
                x=trial.gain.value,
                x_low=trial.gain.low if varies else None,
                x_high=trial.gain.high if varies else None,
                y=lost.value,
                y_low=lost.low,
                y_high=lost.high,
                on_front=trial.on_front,
            )
        )
    names = [settings_text(trial.properties) for trial in trials]
    trade_off = TradeOff(x="gain", y="kl_divergence", bases=(), points=tuple(points))
    return trade_off_chart(trade_off, names, "Gain over the default against KL divergence", "tuning", wide=True)
