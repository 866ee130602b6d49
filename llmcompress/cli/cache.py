"""`llmcompress cache`"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from llmcompress.cli.console import plain, print_json, stdout, table, write_line
from llmcompress.cli.options import Json
from llmcompress.errors import UsageError
from llmcompress.report.text import duration_text, size_text

cache = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@cache.command("list")
def list_cache(as_json: Json = False) -> None:
    """Show what is kept, by kind; with --json every entry by itself.

    [bold]Examples[/bold]
    llmcompress cache list
    llmcompress cache list --json
    """
    from llmcompress.cli.cache_pruning import KINDS, cache_entries
    from llmcompress.system.cache import cache_dir

    entries = cache_entries()
    if as_json:
        print_json([plain(entry) for entry in entries])
        return
    numbers = ["entries", "size", "last used"]
    found = table(["kind", "what"], numbers, one_line=["kind", *numbers])
    for kind, what in KINDS.items():
        of_kind = [entry for entry in entries if entry.kind == kind]
        size = size_text(sum(entry.size_bytes for entry in of_kind))
        last = duration_text(min(entry.unused_s for entry in of_kind)) + " ago" if of_kind else ""
        found.add_row(kind, what, str(len(of_kind)), size if of_kind else "", last)
    stdout().print(found)
    total = sum(entry.size_bytes for entry in entries)
    stdout().print(f"{size_text(total)} in {cache_dir()}", markup=False, soft_wrap=True)


@cache.command("prune")
def prune(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Unused for so long: 12h, 30d, 4w."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Until what is left takes so much: 20GB."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that no run is using.")] = False,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Remove entries, the longest unused first; never what a run is using.

    [bold]Examples[/bold]
    llmcompress cache prune --older-than 30d
    llmcompress cache prune --max-size 20GB
    llmcompress cache prune --all --kind reference-ir
    """
    from llmcompress.cli.cache_pruning import KINDS, prune_cache
    from llmcompress.spec.validation import did_you_mean

    limits = [older_than, max_size, everything or None]
    if not any(limit is not None for limit in limits):
        raise UsageError("nothing says what is to go", hint="give --older-than AGE, --max-size SIZE or --all")
    if everything and (older_than is not None or max_size is not None):
        raise UsageError("--all and a limit contradict each other", hint="leave one of them out")
    for kind in kinds or ():
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or "see: llmcompress cache list"
            raise UsageError(f"got {kind!r}; accepted: {', '.join(KINDS)}", where="--kind", hint=hint)
    report = prune_cache(
        older_than_s=None if older_than is None else _number(older_than, _AGES, "--older-than", "12h, 30d"),
        max_bytes=None if max_size is None else round(_number(max_size, _SIZES, "--max-size", "500MB, 20GB")),
        kinds=tuple(kinds or ()),
    )
    if as_json:
        print_json(report)
        return
    in_use = f"; {report.num_in_use} that a run is using or has just used were left" if report.num_in_use else ""
    write_line(
        f"{report.num_removed} removed, {size_text(report.removed_bytes)}{in_use}; "
        f"{size_text(report.kept_bytes)} kept in {report.directory}"
    )


def _number(text: str, units: dict[str, int], where: str, examples: str) -> float:

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text.strip())
    by_lower_case = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in by_lower_case:
        accepted = ", ".join(unit for unit in units if unit)
        raise UsageError(f"got {text!r}; a number with one of {accepted} is accepted: {examples}", where=where)
    return float(match[1]) * by_lower_case[match[2].lower()]
