"""`llmcompress compress --dry-run`: what it would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.cli.console import facts_table, layers_table, print_blocks, print_report, print_text, write_line
from llmcompress.cli.flags import current_flags, with_flags
from llmcompress.cli.progress import run_watched
from llmcompress.errors import ResourceError
from llmcompress.report.text import count_text, size_text

if TYPE_CHECKING:
    from llmcompress.compression.forecast import Forecast
    from llmcompress.report.compression import Engine
    from llmcompress.spec import Access, Recipe
    from llmcompress.system.progress import Reporter


def predict(request: dict[str, Any], *, as_json: bool, verbose: bool) -> None:
    """Print what compressing would take.

    Args:
        request: What ``forecast_source`` takes.
        as_json: Print the record.
        verbose: Show what the libraries log.

    Raises:
        ResourceError: This machine has less free memory or disk.
    """
    forecast = run_watched(forecast_source, request, verbose=verbose)
    source, recipe_name = request["source"], request["recipe"].name
    print_report(
        forecast,
        lambda made: print_forecast(made, source=source, recipe_name=recipe_name),
        as_json=as_json,
        brief=lambda made: size_text(made.size_bytes),
    )
    if not forecast.fits:
        raise ResourceError(
            "this machine has not enough free memory or disk for it",
            where=source,
            hint="close other programs, free disk space, or take a machine with more of what is short above",
        )


def forecast_source(
    source: str,
    recipe: Recipe,
    output_dir: Path,
    access: Access,
    engine: Engine,
    progress: Reporter,
    *,
    tokenizer: bool = True,
) -> Forecast:
    """Find the source, refuse what a run would refuse, and predict what compressing will take; reads no weight.

    The tokenizer is looked at where it is at hand: of a Hub model it is not fetched for this.
    """
    from llmcompress.compression.compress import predict
    from llmcompress.compression.compressible import require_compressible
    from llmcompress.loaders.environments import is_known, needed_layer
    from llmcompress.loaders.resolving import resolve
    from llmcompress.loaders.tokenizer import require_tokenizer
    from llmcompress.system.environment import quiet_libraries

    quiet_libraries()
    found = resolve(source, access, vision=True)
    require_compressible(found, recipe, requantize=access.requantize, offline=access.offline)
    predicted = predict(found, recipe, output_dir, engine=engine, offline=access.offline)
    if found.files is None and (needed_layer(found) is None or is_known(found)):
        require_tokenizer(found, needed=tokenizer or recipe.calibration is not None)
    return predicted


def print_forecast(forecast: Forecast, *, source: str, recipe_name: str) -> None:
    """Print predicted size, memory and disk, and what each weight would become."""

    def against(need: int, have: int) -> str:
        return f"{size_text(need)} of {size_text(have)} free" + ("" if need <= have else "  NOT ENOUGH")

    facts = {
        "Source": f"{source}  ({count_text(forecast.num_parameters)} parameters)",
        "Recipe": recipe_name,
        "Size": f"{size_text(forecast.size_bytes)}  ({forecast.bits_per_weight:.2f} bits per weight)",
        "Memory": against(forecast.min_memory_bytes, forecast.available_memory_bytes)
        + f"; peak {size_text(forecast.peak_rss_bytes)} with mapped files",
        "Disk": against(forecast.disk_bytes, forecast.free_disk_bytes),
        "Fits": "yes" if forecast.fits else "no",
    }
    print_blocks(facts_table(facts), layers_table(forecast.layers))
    if forecast.notes:
        write_line("")
    for note in forecast.notes:
        print_text(with_flags(f"{'warning' if note in forecast.warnings else 'note'}: {note}", current_flags()))
