"""Whether a source can be loaded and converted: every refusal that needs none of its weights."""

from __future__ import annotations

from llmcompress.errors import ModelError
from llmcompress.loaders.adapter import require_mergeable, warn_of_adapter
from llmcompress.loaders.architecture import Architecture, check_architecture
from llmcompress.loaders.context import warn_of_frozen_positions
from llmcompress.loaders.environments import needed_layer, require_layer
from llmcompress.loaders.fetching import check_code, fetch_listed
from llmcompress.loaders.hub_headers import read_hub_checkpoint
from llmcompress.loaders.other_libraries import refuse_other_libraries
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.source import Source, file_names, source_checkpoint
from llmcompress.loaders.tensor_names import require_same_tensors
from llmcompress.loaders.tensors import Checkpoint, choose_weights, refuse_empty


def require_convertible(source: Source, *, offline: bool = False) -> Architecture | None:
    """Refuse what loading would refuse, by the names of files, their small JSON files and the headers of weights.

    Of a Hub source only small files and the first bytes of its weights are fetched.

    Args:
        source: As resolved.
        offline: Nothing may be installed for it.

    Returns:
        What the model is; None for an IR, which was converted before.

    Raises:
        LayerMissingError: It is converted by a version of transformers that may not be installed now.
        ModelError: No causal language model, none that the exporter converts, or damaged or incomplete.
        ResourceError: An adapter is to be merged, and peft is not installed.
        SecurityError: It would need pickle files or foreign code.
        HubError: The small files could not be had.
    """
    if source.layout == "ir":
        check_code(fetch_listed(source))
        return None
    if source.container is None:
        choose_weights(file_names(source), where=source.id or str(source.path))
    source = fetch_listed(source)
    check_code(source)
    # The headers come first, as in a real run, whose check of all bytes takes the time of the libraries' import.
    is_here = source.files is None or source.container is not None
    checkpoint = _not_empty(source_checkpoint(source)) if is_here else None
    if source.container is None:
        refuse_other_libraries(source)
    layer = needed_layer(source)
    architecture = check_architecture(
        source.config, trust_remote_code=source.trust_remote_code, transformers=layer and layer.version
    )
    if layer is not None:
        require_layer(layer, source.config, offline=offline)
    # Of the Hub, they are asked for where nothing smaller refuses it.
    headers = checkpoint or _not_empty(read_hub_checkpoint(source))
    found = None if checkpoint is None else source_weights(source, checkpoint)
    if found is not None and architecture.remote_code:
        raise ModelError(
            "quantized weights go into transformers' own class, and `trust_remote_code` asks for the model's",
            where=source.name,
            hint="leave it out where transformers knows the model type",
        )
    plain = headers if found is None else found.plain
    if (found or architecture.quantization == "none") and not architecture.remote_code:
        require_same_tensors(source, plain, frozenset() if found is None else found.zero_biases)
    if source.adapter is None and source.container is None:
        warn_of_adapter(file_names(source), source.name)
    elif source.adapter is not None:
        require_mergeable(source.adapter, quantized=architecture.quantization != "none")
    warn_of_frozen_positions(source)
    return architecture


def _not_empty(checkpoint: Checkpoint) -> Checkpoint:
    refuse_empty(checkpoint)
    return checkpoint
