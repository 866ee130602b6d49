"""Where a report was put, and the command that leads on from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, print_labelled, stdout, write_line
from llmcompress.report.file_names import BENCH_REPORT, EVAL_REPORT, MANIFEST, SEARCH_REPORT, TUNE_REPORT
from llmcompress.system.command_line import command_line

if TYPE_CHECKING:
    from llmcompress.evaluation.advice import Advice, Remedy
    from llmcompress.report.benchmark import BenchReport
    from llmcompress.report.compression import CompressionReport
    from llmcompress.report.evaluation import EvalReport
    from llmcompress.report.record import Record
    from llmcompress.report.tuning import TuneReport
    from llmcompress.spec import Access, EvalSpec


def print_next(program: str, operands: Sequence[str], options: Sequence[str] = ()) -> None:
    """Print the command to go on with, as a person can paste it."""
    print_labelled("Next: ", command_line(["llmcompress", program], operands, options))


def after_compress(report: CompressionReport, source: str, output_dir: Path, access: Access) -> None:
    """Lead on to what the compression cost."""
    origin = report.provenance
    options = ["--reference", source]
    options += ["--reference-revision", origin.revision] if origin.id is not None and origin.revision else []
    options += _access_options(access)
    print_next("eval", [str(output_dir)], [*options, *_fitting_windows(output_dir)])


def after_eval(report: EvalReport, source: str, spec: EvalSpec, reference: str | None) -> None:
    """Lead on to a better recipe where the model is worse, else to its speed, else to a talk with it."""
    from llmcompress.artifact import read_measurements
    from llmcompress.evaluation.advice import advice
    from llmcompress.report.options import spec_options

    directory = Path(source)
    if not (directory / MANIFEST).is_file():
        return
    found = read_measurements(directory)
    write_line("")
    given = advice(report, found.manifest.recipe)
    if given is not None:
        stdout().print(facts_table(_advice_facts(given)))
    _print_written([directory / EVAL_REPORT] if _holds(found.evaluation, report) else [])
    if given is None:
        trusted = ["--trust-remote-code"] if found.manifest.provenance.trust_remote_code else []
        if found.benchmark is None:
            print_next("bench", [source], [*trusted, *_fitting_prompts(directory)])
        else:
            print_next("chat", [source], [*trusted, *(["--with", reference] if reference else [])])
    elif given.first is not None:
        _print_again(given.first, found.manifest, directory, reference)
    elif not report.split_damage and reference is not None:
        print_next("eval", [source], ["--reference", reference, *spec_options(spec), "--split-damage"])


def after_bench(reports: Sequence[BenchReport], sources: Sequence[str]) -> None:
    """Lead on to the card of the last artifact that was measured."""
    from llmcompress.artifact import read_measurements

    directories = [Path(source) for source in sources]
    held = [
        directory
        for directory, report in zip(directories, reports, strict=True)
        if (directory / MANIFEST).is_file() and _holds(read_measurements(directory).benchmark, report)
    ]
    if held:
        write_line("")
        _print_written([directory / BENCH_REPORT for directory in held])
        print_next("card", [str(held[-1])])


def after_tune(report: TuneReport, directory: Path, *, applied: bool) -> None:
    """Lead on to an artifact with what was chosen, as far as a model can hold it."""
    from llmcompress.artifact import read_measurements

    write_line("")
    _print_written([directory / TUNE_REPORT] if _holds(read_measurements(directory).tuning, report) else [])
    if report.permitted and report.in_model and not applied:
        print_next("tune", [str(directory)], ["--measured", "--apply", "-o", f"{directory}-tuned"])


def after_search(directory: Path, source: str) -> None:
    """Lead on to the evaluation on both backends."""
    write_line("")
    _print_written([directory / SEARCH_REPORT])
    print_next("eval", [str(directory)], ["--reference", source])


def _advice_facts(given: Advice) -> dict[str, str]:
    facts = {"Lost": given.lost}
    if given.remedies:
        facts["Try"] = "\n".join(
            f"{remedy.recipe or f'--set {remedy.setting}'}: {remedy.effect}" for remedy in given.remedies
        )
    return facts


def _print_written(paths: Sequence[Path]) -> None:
    if paths:
        print_labelled("Written to ", ", ".join(map(str, paths)))


def _holds(there: Record | None, report: Record) -> bool:
    """Whether the artifact holds this very report; NaN is equal to NaN in text alone."""
    return there is not None and there.model_dump_json() == report.model_dump_json()


def _access_options(access: Access) -> list[str]:
    """Everything but the revision, which is pinned by then, and the part, which a comparison is of anyway."""
    from llmcompress.report.options import option_name

    found = []
    for name, value in access._replace(revision=None, text_only=False)._asdict().items():
        if value:
            found += [option_name(name)] if value is True else [option_name(name), str(value)]
    return found


def _fitting_windows(directory: Path) -> list[str]:
    """The length of windows where the default is longer than the model's context."""
    from llmcompress.spec import EvalSpec

    longest, default = _context(directory), EvalSpec.model_fields["seq_len"].default
    return ["--seq-len", str(longest)] if longest is not None and longest < default else []


def _fitting_prompts(directory: Path) -> list[str]:
    """Half of the model's context where the default is longer, with what is generated, than all of it."""
    from llmcompress.spec import BenchSpec

    longest, defaults = _context(directory), BenchSpec()
    if longest is None or longest >= max(defaults.prompt_tokens) + max(defaults.new_tokens):
        return []
    new = [] if longest >= 2 * max(defaults.new_tokens) else ["--new-tokens", str(longest // 2)]
    return ["--prompt-tokens", str(longest // 2), *new]


def _context(directory: Path) -> int | None:
    from llmcompress.loaders.context import longest_context
    from llmcompress.loaders.resolving import resolve

    if not (directory / "config.json").is_file():
        return None
    return longest_context(resolve(directory, vision=True))


def _print_again(remedy: Remedy, manifest: CompressionReport, directory: Path, reference: str | None) -> None:
    """The compression that loses less; of a local source no path is kept, so it is what the model was compared with."""
    from llmcompress.report.options import recipe_option

    origin = manifest.provenance
    source = origin.id or reference
    if source is None:
        return
    options = ["--revision", origin.revision] if origin.id is not None and origin.revision else []
    options += ["-r", remedy.recipe or recipe_option(manifest.recipe, str(directory))]
    options += ["--set", remedy.setting] if remedy.setting else []
    if remedy.recipe is None and remedy.setting:
        # The recipe's own name is that of the model that is there.
        options += ["-o", f"{directory}-{remedy.setting.rpartition('.')[2].replace('=', '-')}"]
    options += ["--trust-remote-code"] if origin.trust_remote_code else []
    print_next("compress", [source], options)
