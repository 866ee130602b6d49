"""A forecast for people: what compressing would give and take, against what this machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, stdout
from llmcompress.wording import count_text, size_text

if TYPE_CHECKING:
    from llmcompress.compression.forecast import Forecast


def print_forecast(forecast: Forecast, *, source: str, recipe_name: str) -> None:
    """Print predicted size, memory and disk, and what each weight would become."""
    from rich.text import Text

    from llmcompress.cli.report_view import layers_table

    def against(need: int, have: int) -> str:
        return f"{size_text(need)} of {size_text(have)} free" + ("" if need <= have else "  NOT ENOUGH")

    console = stdout()
    console.print(
        facts_table(
            {
                "Source": f"{source}  ({count_text(forecast.num_parameters)} parameters)",
                "Recipe": recipe_name,
                "Size": f"{size_text(forecast.size_bytes)}  ({forecast.bits_per_weight:.2f} bits per weight)",
                "Memory": against(forecast.min_memory_bytes, forecast.available_memory_bytes)
                + f"; peak {size_text(forecast.peak_rss_bytes)} with mapped files",
                "Disk": against(forecast.disk_bytes, forecast.free_disk_bytes),
                "Fits": "yes" if forecast.fits else "no",
            }
        )
    )
    console.print()
    console.print(layers_table(forecast.layers))
    if forecast.notes:
        console.print()
    for note in forecast.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
