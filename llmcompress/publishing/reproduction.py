"""The commands that make the same artifact and measure it again, from what the records hold."""

from __future__ import annotations

from llmcompress.artifact import Measurements
from llmcompress.publishing.base_model import BaseModel, hub_name, is_base
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import RECIPE
from llmcompress.report.options import eval_options, spec_options
from llmcompress.report.record import Provenance
from llmcompress.system.command_line import command_line

CHECKPOINT = "PATH_TO_THE_BASE"
ADAPTER = "PATH_TO_THE_ADAPTER"
REFERENCE = "PATH_TO_THE_REFERENCE"


def lock(manifest: CompressionReport) -> str:
    """The versions that decided the bytes, as pip reads them."""
    environment = manifest.environment
    versions = {name: version for name, version in environment.versions.items() if name != "python"}
    head = (
        f"# Python {environment.versions.get('python', 'unknown')}, {environment.platform}, {environment.cpu}, "
        f"{environment.num_threads} threads"
    )
    return "\n".join([head, *(f"{name}=={version}" for name, version in versions.items())])


def commands(found: Measurements, base: BaseModel, directory: str) -> str:
    """One command a line: compress, and as far as it was done evaluate and benchmark."""
    lines = [_compress(found.manifest, base, directory)]
    if found.evaluation is not None:
        lines.append(_evaluate(found.manifest, found.evaluation, base, directory))
    if found.benchmark is not None:
        lines.append(_bench(found.benchmark, directory))
    return "\n".join(lines)


def _compress(manifest: CompressionReport, base: BaseModel, directory: str) -> str:
    source, revision = base.id or CHECKPOINT, base.revision
    adapter = manifest.provenance.adapter
    if adapter is not None:
        source, revision = adapter.id or ADAPTER, adapter.revision
    words = ["--revision", revision] if revision else []
    words += ["--recipe", RECIPE, "-o", directory]
    words += ["--merge-adapter"] if adapter is not None else []
    words += ["--requantize"] if manifest.provenance.is_quantized and manifest.recipe.weight_passes else []
    words += _file(base, manifest.provenance)
    words += ["--text-only"] if manifest.provenance.language_model_of else []
    words += ["--trust-remote-code"] if manifest.provenance.trust_remote_code else []
    words += ["--no-tokenizer"] if manifest.tokenizer == "none" else []
    return command_line(["llmcompress", "compress"], [source], words)


def _file(base: BaseModel, provenance: Provenance) -> list[str]:
    """The GGUF or ONNX file of a repository, which may hold several."""
    names = [file.path for file in provenance.files if file.path.endswith((".gguf", ".onnx"))]
    return ["--file", names[0]] if names and base.id else []


def _evaluate(manifest: CompressionReport, report: EvalReport, base: BaseModel, directory: str) -> str:
    words: list[str] = []
    if report.reference is not None:
        same = is_base(manifest, report)
        hub_id, revision = hub_name(manifest.provenance if same else report.reference.provenance)
        source = hub_id or (CHECKPOINT if same else REFERENCE)
        adapter = (manifest if same else report.reference).provenance.adapter
        if adapter is not None:
            source, revision = adapter.id or ADAPTER, adapter.revision
        words += ["--reference", source]
        words += ["--reference-revision", revision] if revision else []
        words += ["--merge-adapter"] if adapter is not None else []
        words += _file(base, report.reference.provenance) if same else []
        words += ["--trust-remote-code"] if report.reference.provenance.trust_remote_code else []
    words += eval_options(report, manifest.recipe.gate)
    if report.divergence is not None and report.divergence.reference_scores != "exact":
        words += ["--reference-scores", report.divergence.reference_scores]
    return command_line(["llmcompress", "eval"], [directory], words)


def _bench(report: BenchReport, directory: str) -> str:
    # What it was compared with is known by its name alone.
    first = [report.compared_with] if report.compared_with and report.compared_with != directory else []
    return command_line(["llmcompress", "bench"], [*first, directory], list(spec_options(report.spec)))
