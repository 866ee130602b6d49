"""A source, loaded: the graph, its tokenizer and configuration, and where all of it came from."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.artifact import MANIFEST, file_records, read_manifest, require_verified
from llmcompress.artifact.manifest import entries, file_record
from llmcompress.graph.model import check_decoder, count_parameters, is_compressed, mapped_share, read_ir
from llmcompress.loaders.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmcompress.loaders.checking import CheckedWeights, weights_checked
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.environments import needed_layer, on_layer
from llmcompress.loaders.exporter import task_of
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.generation import read_generation_config
from llmcompress.loaders.language_model import exported_directory, whole_config
from llmcompress.loaders.layout import ir_files
from llmcompress.loaders.light_imports import light_imports
from llmcompress.loaders.model_card import gguf_card, read_source_card
from llmcompress.loaders.quantized.declaration import declared, is_repacked, quantization_method
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.scan import check_hashes, scan_constants
from llmcompress.loaders.source import Source, side_files, text_files
from llmcompress.loaders.tensors import INDEX, Checkpoint, choose_weights, read_index
from llmcompress.loaders.tokenizer import source_tokenizer
from llmcompress.report.file_names import LANGUAGE_MODEL, MODEL, model_files, part_of
from llmcompress.report.record import AdapterRecord, FileRecord, Provenance, QuantizationRecord, SourceCard
from llmcompress.spec.access import Access
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, installed_versions, quiet_libraries
from llmcompress.system.json_file import read_json
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.graph.joining import TextFeed
    from llmcompress.loaders.quantized.conversion import KeptWeights

ADAPTER_FOLDER = "adapter/"
"""Before the names of an adapter's files, where a source's are listed."""
ELEMENT_NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}


@dataclass(frozen=True)
class LoadedModel:
    """What every verb starts from. ``model`` is stateful, with the key-value cache inside."""

    model: ov.Model
    """Of a vision-language model its language model, which takes ``inputs_embeds`` in place of ``input_ids``."""
    tokenizer: Any | None
    """A transformers tokenizer; None where the source brings none and ``tokenizer=False`` was asked for."""
    config: dict[str, Any]
    generation_config: dict[str, Any] | None
    provenance: Provenance
    source: Source
    num_parameters: int
    """Elements in the checkpoint's tensors; of an IR, in the floating-point constants of its graph."""
    mapped_share: float
    """Share of the weights that are views of the source's files instead of copies in memory."""
    kept: KeptWeights | None = None
    """What ``model`` keeps of a source that is quantized already."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that converted it, where that was done on a layer."""
    parts: Mapping[str, ov.Model] = field(default_factory=dict)
    """What a vision-language model has besides its language model, by the exporter's names: the embedding of text, the
    part that sees, and others."""

    @property
    def part(self) -> str:
        """The exporter's name of ``model``."""
        return LANGUAGE_MODEL if self.parts else MODEL

    def clone(self) -> LoadedModel:
        """The same with a copy of the graphs; the weights stay shared."""
        from llmcompress.loaders.checkpoint import clone_model

        copies = {name: clone_model(part) for name, part in self.parts.items()}
        return replace(self, model=clone_model(self.model), parts=copies)

    def reading_text(self) -> LoadedModel:
        """The same with one graph that reads text alone, of a vision-language model; itself of a text model.

        Raises:
            ModelError: Its language model takes more than text gives.
        """
        if not self.parts:
            return self
        from llmcompress.graph.joining import text_decoder

        return replace(self, model=text_decoder(self.model, self.parts, where=self.source.name), parts={})

    def text_feed(self) -> TextFeed:
        """What feeds ``model`` with a window of text; raises as ``reading_text``."""
        from llmcompress.graph.joining import text_feed

        return text_feed(self.model, self.parts, where=self.source.name)

    def dequantized(self) -> LoadedModel:
        """The same with the floats that a quantized source's codes stand for; itself where it was in floats."""
        from llmcompress.loaders.quantized.conversion import dequantized_model

        return self if self.kept is None else replace(self, model=dequantized_model(self.model, self.kept), kept=None)


@library_call
def load(
    source: str | Path | Source,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    merge_adapter: bool = False,
    file: str | None = None,
    text_only: bool = False,
    tokenizer: bool = True,
    scratch_dir: Path | None = None,
    checked: CheckedWeights | None = None,
    progress: ProgressOption = "auto",
) -> LoadedModel:
    """Load a Hub id, a checkpoint directory, a GGUF or ONNX file, or an OpenVINO IR directory.

    Args:
        source: What to load, or what ``resolve`` made of it.
        revision: Branch, tag or commit of a Hub source; resolved to one commit.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use the local Hub cache only.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave the source's directory.
        merge_adapter: Load the base model of an adapter's directory and merge the adapter into it.
        file: The GGUF or ONNX file that is meant, of a directory or repository that holds several.
        text_only: Take the language model of a vision-language checkpoint alone.
        tokenizer: Load the tokenizer, and fail where there is none.
        scratch_dir: Existing empty directory for the exporter's configuration files, and for its staged IR should
            the in-memory way be closed; by default a temporary one.
        checked: The check of this source's weights, where one was begun earlier.
        progress: Told of the bytes checked and the steps done.

    Raises:
        UsageError: Neither a path nor a Hub id.
        ModelError: The source is damaged, incomplete, or no causal language model that can be converted.
        SecurityError: It would need pickle files or foreign code.
        HubError: The Hub could not give it.
    """
    progress = reporter(progress)
    quiet_libraries()
    if not isinstance(source, Source):
        access = Access(
            revision,
            trust_remote_code,
            offline,
            allow_nonfinite,
            allow_links,
            merge_adapter,
            file=file,
            text_only=text_only,
        )
        source = resolve(source, access, vision=True)
    return load_source(
        source,
        allow_nonfinite=allow_nonfinite,
        tokenizer=tokenizer,
        scratch_dir=scratch_dir,
        checked=checked,
        progress=progress,
    )


def load_source(
    source: Source,
    *,
    allow_nonfinite: bool = False,
    tokenizer: bool = True,
    scratch_dir: Path | None = None,
    checked: CheckedWeights | None = None,
    progress: Reporter = silent,
) -> LoadedModel:
    """Load what ``resolve`` found; arguments and errors as those of ``load``."""
    with ExitStack() as stack:
        stack.enter_context(light_imports(source))
        if checked is None:
            require_convertible(source)
        if scratch_dir is None:
            # What was loaded is good, whether or not the device lets go of what it was made from.
            scratch = tempfile.TemporaryDirectory(prefix="llmcompress-", ignore_cleanup_errors=True)
            scratch_dir = Path(stack.enter_context(scratch))
        layer = needed_layer(source)
        if layer is not None:
            how = {"allow_nonfinite": allow_nonfinite, "directory": scratch_dir}
            found = on_layer(layer, save_loaded, source, how, progress=progress)
            opened = source_tokenizer(found["source"]) if tokenizer else None
            graphs = {name: read_ir(scratch_dir, name) for name in found.pop("names")}
            return LoadedModel(model=_taken(graphs), tokenizer=opened, parts=graphs, **found)
        if source.layout == "ir":
            return _load_ir(fetch_weights(source, progress=progress), tokenizer, allow_nonfinite, progress)
        if checked is None:
            start = stack.enter_context(weights_checked(allow_nonfinite=allow_nonfinite, progress=progress))
            source = fetch_weights(source, progress=progress)
            checked = start(source)
        return _load_checkpoint(source, checked, scratch_dir, tokenizer, progress)


def save_loaded(source: Source, *, allow_nonfinite: bool, directory: Path, progress: Reporter) -> dict[str, Any]:
    """Load a checkpoint by the transformers of this process and save its graph as it is, for another process.

    Returns:
        What else there is of the LoadedModel, without a tokenizer; and the names of its graphs.

    Raises: as ``load``.
    """
    import openvino as ov

    loaded = load_source(source, allow_nonfinite=allow_nonfinite, tokenizer=False, progress=progress)
    graphs = {loaded.part: loaded.model, **loaded.parts}
    for name, graph in graphs.items():
        ov.save_model(graph, directory / model_files(name)[0], compress_to_fp16=False)
    others = {each.name for each in fields(loaded)} - {"model", "tokenizer", "parts"}
    versions = installed_versions(PACKAGES_THAT_DECIDE_BYTES)
    return {name: getattr(loaded, name) for name in others} | {"versions": versions, "names": list(graphs)}


def source_files(source: Source) -> tuple[FileRecord, ...]:
    """Hash the files of a source's directories that ``load`` would record as its provenance; of the Hub's none.

    Raises:
        SecurityError: The weights are pickle files only.
        ModelError: There are no weights.
    """
    adapter = _adapter_files(source) if source.adapter is not None and source.adapter.id is None else ()
    if source.id is not None:
        return adapter
    if source.container is not None:
        others = () if source.is_gguf else _records(source, side_files(source))
        return tuple(sorted((*_container_records(source.container), *others), key=lambda file: file.path))
    if source.layout == "ir":
        weights = list(ir_files([path.name for path in source.path.iterdir()]))
    else:
        main = choose_weights([path.name for path in source.path.iterdir()], where=str(source.path))
        weights = [main, *(set(read_index(source.path / INDEX).values()) if main == INDEX else ())]
    records = (*_records(source, (*weights, *side_files(source))), *adapter)
    return tuple(sorted(records, key=lambda file: file.path))


def _load_checkpoint(
    source: Source, checked: CheckedWeights, scratch_dir: Path, with_tokenizer: bool, progress: Reporter
) -> LoadedModel:
    from llmcompress.loaders.checkpoint import Given, convert_parts
    from llmcompress.loaders.quantized.conversion import convert_quantized

    progress(Progress("load and trace", 0, 1))
    tokenizer = source_tokenizer(source) if with_tokenizer else None
    if checked.records.done():
        checked.records.result()
    found = source_weights(source, checked.checkpoint)
    kept, plain = None, checked.checkpoint if found is None else found.plain
    parts: dict[str, ov.Model] = {}
    num_parameters = parameters_of(plain)
    if found is None:
        counts: list[int] = []
        given = Given(source.adapter)
        if source.text_only:
            given = Given(after_load=lambda taken: counts.append(taken.num_parameters()), whole=source.path)
        with exported_directory(source) as directory:
            parts = convert_parts(
                directory,
                scratch_dir,
                task=task_of(source.config),
                trust_remote_code=source.trust_remote_code,
                given=given,
            )
        num_parameters = counts[0] if counts else num_parameters
        model = _taken(parts)
    else:
        model, kept = convert_quantized(source, found, scratch_dir, allow_nonfinite=checked.allow_nonfinite)
    provenance = checkpoint_provenance(source, checked, None if kept is None else kept.method)
    progress(Progress("load and trace", 1, 1))
    check_decoder(model, where=source.name, takes="inputs_embeds" if parts else "input_ids")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=read_json(scratch_dir / "config.json"),
        generation_config=read_generation_config(source.path),
        provenance=provenance,
        source=source,
        num_parameters=num_parameters,
        mapped_share=mapped_share(model),
        kept=kept,
        parts=parts,
    )


def parameters_of(checkpoint: Checkpoint) -> int:
    """Number of elements of a checkpoint's tensors."""
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def _taken(graphs: dict[str, ov.Model]) -> ov.Model:
    """Take what generates out of a model's graphs."""
    return graphs.pop(MODEL if MODEL in graphs else LANGUAGE_MODEL)


def checkpoint_provenance(source: Source, checked: CheckedWeights, method: str | None = None) -> Provenance:
    """Where a checkpoint came from, when all of its files have been checked.

    Args:
        source: What was resolved; its files are there.
        checked: The check of its weights, which is waited for.
        method: How its weights are quantized, where they are.

    Raises: what the check found wrong.
    """
    # What is made of GGUF's metadata is no file of the source.
    others = () if source.is_gguf else (*_records(source, side_files(source)), *_adapter_files(source))
    return _provenance(source, method or _dtype(checked.checkpoint), (*checked.records.result(), *others))


def _load_ir(source: Source, with_tokenizer: bool, allow_nonfinite: bool, progress: Reporter) -> LoadedModel:
    progress(Progress("read the model", 0, 1))
    tokenizer = source_tokenizer(source) if with_tokenizer else None
    if (source.path / MANIFEST).is_file():
        require_verified(source.path)
    names = ir_files([path.name for path in source.path.iterdir()])
    files = _records(source, (*names, *side_files(source)))
    check_hashes(files, source.expected_sha256, source.path)
    parts = {part: read_ir(source.path, part) for part in map(part_of, sorted({Path(name).stem for name in names}))}
    for part, graph in parts.items():
        scan_constants(graph, where=str(source.path), file=model_files(part)[1], allow_nonfinite=allow_nonfinite)
    num_parameters = sum(map(count_parameters, parts.values()))
    model = _taken(parts)
    check_decoder(model, where=source.name, takes="inputs_embeds" if parts else "input_ids")
    progress(Progress("read the model", 1, 1))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=source.config,
        generation_config=read_generation_config(source.path),
        provenance=_provenance(source, "compressed" if is_compressed(model) else _ir_dtype(model), files),
        source=source,
        num_parameters=num_parameters,
        mapped_share=mapped_share(model),
        parts=parts,
    )


def _records(source: Source, names: Collection[str]) -> tuple[FileRecord, ...]:
    others = {name for name, _ in entries(source.path)} - set(names)
    return file_records(source.path, exclude=others)


def _container_records(container: Checkpoint) -> tuple[FileRecord, ...]:
    with os.scandir(container.path) as found:
        return tuple(file_record(entry.name, entry) for entry in found if entry.name in container.files)


def _adapter_files(source: Source) -> tuple[FileRecord, ...]:
    """The files of an adapter, as in a folder of its own: what it is merged into depends on them."""
    if source.adapter is None:
        return ()
    names = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, *(text_files(source) if source.text_path == source.adapter.path else ())}
    others = {name for name, _ in entries(source.adapter.path)} - names
    records = file_records(source.adapter.path, exclude=others)
    return tuple(record.model_copy(update={"path": ADAPTER_FOLDER + record.path}) for record in records)


def _provenance(source: Source, dtype: str, files: tuple[FileRecord, ...]) -> Provenance:
    architectures, adapter = source.config.get("architectures") or ["unknown"], source.adapter
    return Provenance(
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        model_type=str(source.config.get("model_type")),
        architecture=str(architectures[0]),
        dtype=dtype,
        files=tuple(sorted(files, key=lambda file: file.path)),
        trust_remote_code=source.trust_remote_code,
        quantization=_quantization(source),
        card=_card(source),
        adapter=AdapterRecord(id=adapter.id, revision=adapter.revision) if adapter else None,
        language_model_of=str(whole_config(source).get("model_type")) if source.text_only else None,
    )


def _quantization(source: Source) -> QuantizationRecord | None:
    if source.layout != "checkpoint" or not is_repacked(source.config):
        return None
    settings = declared(source.config)
    return QuantizationRecord(method=quantization_method(settings), settings=dict(settings))


def _card(source: Source) -> SourceCard | None:
    """What the source's page states; of an artifact of ours that has none, what its own source's page stated."""
    if source.is_gguf:
        return gguf_card(declared(source.config)["general"])
    card = read_source_card(source.path)
    if card is None and source.layout == "ir" and (source.path / MANIFEST).is_file():
        return read_manifest(source.path).provenance.card
    return card


def _dtype(checkpoint: Checkpoint) -> str:
    names = {ELEMENT_NAMES.get(tensor.dtype, tensor.dtype.lower()) for tensor in checkpoint.tensors.values()}
    return names.pop() if len(names) == 1 else "mixed"


def _ir_dtype(model: ov.Model) -> str:
    types = {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    for element, name in (("bf16", "bf16"), ("f16", "fp16"), ("f32", "fp32")):
        if element in types:
            return name
    return "mixed"
