"""The main job end to end on the checkpoint that comes with the package: compress it, measure what that cost, talk."""

from __future__ import annotations

from pathlib import Path

from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.record import Record
from llmcompress.spec import BenchSpec, EvalSpec
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.progress import Progress, Reporter, silent

CHECKPOINT = Path(__file__).with_name("demo_checkpoint")
REFERENCE = "none"
RECIPES = (REFERENCE, "int8", "int4")
HELD_OUT = EvalSpec(dataset=str(CHECKPOINT / "heldout.txt"), seq_len=256)
PROMPT = "What does str.split do?"
MAX_NEW_TOKENS = 80
SPEED = BenchSpec(prompt_tokens=(256,), new_tokens=(64,))


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
        UsageError: ``output_dir`` holds something that is no earlier demo.
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
