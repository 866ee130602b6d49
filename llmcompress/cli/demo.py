"""`llmcompress demo`: the main job end to end, on the checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.console import (
    layers_table,
    print_blocks,
    print_labelled,
    print_note,
    print_report,
    print_text,
    table,
    write_line,
)
from llmcompress.cli.options import Json, Verbose
from llmcompress.cli.progress import run_watched
from llmcompress.report.benchmark import BenchReport, rate_text
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport, quoted_text
from llmcompress.report.record import Record
from llmcompress.report.text import duration_text, size_text
from llmcompress.spec import BenchSpec, EvalSpec
from llmcompress.spec.dataset import BUNDLED
from llmcompress.system.command_line import command_line
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.progress import Progress, Reporter, silent

CHECKPOINT = Path(__file__).with_name("demo_checkpoint")
REFERENCE = "none"
RECIPES = (REFERENCE, "int8", "int4")
HELD_OUT = EvalSpec(dataset=BUNDLED, seq_len=256)
PROMPT = "What does str.split do?"
MAX_NEW_TOKENS = 80
SPEED = BenchSpec(prompt_tokens=(256,), new_tokens=(64,))


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the compressed models are written.")
    ] = Path("llmcompress-demo"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """[bold]Examples[/bold]
    llmcompress demo
    llmcompress demo -o /tmp/demo
    """
    options = {"output_dir": output.absolute()}
    report = run_watched(run, options, verbose=verbose, stage="load the libraries")
    print_report(report, lambda made: _print(made, output), as_json=as_json, brief=lambda _: str(output))


class DemoVariant(Record):
    """One recipe's artifact, what it lost, and what it answered."""

    directory: str
    report: CompressionReport
    evaluation: EvalReport
    """On text that the model was not trained on; of the compressed ones against the uncompressed one."""
    speed: BenchReport
    """Of all variants in turn."""
    answer: str
    num_generated_tokens: int
    stopped: bool
    """True when the model ended its answer by itself."""


class DemoReport(Record):
    """The uncompressed conversion first, then each compressed one."""

    prompt: str
    variants: tuple[DemoVariant, ...]


def run(output_dir: str | Path, *, progress: Reporter = silent) -> DemoReport:
    """Compress the bundled checkpoint with each demo recipe into ``output_dir``, evaluate each, and let it answer.

    Raises:
        UsageError: ``output_dir`` holds something that is not an earlier demo.
        WriteError: It cannot be written.
    """
    quiet_libraries()
    from llmcompress.benchmarking.benchmark import benchmark
    from llmcompress.compression.compress import compress
    from llmcompress.evaluation.evaluate import evaluate
    from llmcompress.loaders import load

    loaded = load(CHECKPOINT, progress=progress)
    made = []
    for name in RECIPES:
        directory = Path(output_dir) / name
        report = compress(loaded, name, directory, overwrite=directory.exists(), progress=progress)
        reference = None if name == REFERENCE else Path(output_dir) / REFERENCE
        evaluation = evaluate(directory, HELD_OUT, reference=reference, progress=progress)
        made.append((directory, report, evaluation))
    speeds = benchmark([directory for directory, *_ in made], SPEED, progress=progress)
    variants = [_variant(*parts, speed, loaded.tokenizer, progress) for parts, speed in zip(made, speeds, strict=True)]
    return DemoReport(prompt=PROMPT, variants=tuple(variants))


def _variant(
    directory: Path,
    report: CompressionReport,
    evaluation: EvalReport,
    speed: BenchReport,
    tokenizer: object,
    progress: Reporter,
) -> DemoVariant:
    from llmcompress.graph.decoding import compile_decoder, eos_token_ids, generate
    from llmcompress.loaders.chat import render

    progress(Progress(f"generate with {report.recipe.name}", 0, 1))
    text = render(tokenizer, [{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    generation = generate(
        compile_decoder(directory), prompt_ids, eos=eos_token_ids(directory), max_new_tokens=MAX_NEW_TOKENS
    )
    progress(Progress(f"generate with {report.recipe.name}", 1, 1))
    return DemoVariant(
        directory=str(directory),
        report=report,
        evaluation=evaluation,
        speed=speed,
        answer=tokenizer.decode(generation.token_ids).strip(),  # type: ignore[attr-defined]
        num_generated_tokens=len(generation.token_ids),
        stopped=generation.stopped,
    )


def _print(report: DemoReport, output: Path) -> None:
    numbers = ["Size", "Bits/weight", "Time", "Perplexity", "KL", "Top-1", "Decode tokens/s", "Peak memory"]
    sizes = table(["Recipe"], numbers)
    sizes.columns[0].style = "bold"
    sizes.add_column("Verdict")
    for variant in report.variants:
        made, worst = variant.report, variant.evaluation.worst
        lost = worst.divergence
        sizes.add_row(
            made.recipe.name,
            size_text(made.size_bytes),
            f"{made.bits_per_weight:.2f}",
            duration_text(made.measured.duration_s),
            f"{worst.perplexity.perplexity.value:.4g}",
            f"{lost.kl_divergence.value:.2g}" if lost else "",
            f"{lost.top1_agreement.value:.1%}" if lost else "",
            rate_text(variant.speed.cases[0].decode_tokens_per_s),
            size_text(variant.speed.peak_rss_bytes),
            variant.evaluation.verdict or "the reference",
        )
    text = report.variants[0].evaluation.text
    print_blocks(sizes)
    print_text(f"Measured on {text.num_scored_tokens:,} tokens of held-out text through the OpenVINO runtime.")
    if quoted := quoted_text({variant.report.recipe.name: variant.evaluation for variant in report.variants}):
        print_text(quoted)
    write_line("")
    for variant in report.variants:
        print_note(variant.report.recipe.name, ": what its weights became")
        print_blocks(layers_table(variant.report.layers))
        write_line("")
    print_note("Question: ", report.prompt)
    for variant in report.variants:
        print_note(f"{variant.report.recipe.name}: ", variant.answer)
    write_line("")
    print_labelled("Written to ", str(output))
    first, last = (Path(report.variants[index].directory).name for index in (0, -1))
    options = ["--reference", str(output / first), "--dataset", str(HELD_OUT.dataset), "--seq-len", "256"]
    evaluate = command_line(["llmcompress", "eval"], [str(output / last)], [*options, "--split-damage"])
    print_labelled("Next: ", evaluate)
