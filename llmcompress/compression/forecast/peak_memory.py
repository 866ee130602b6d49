"""Peak memory of a run, put together from what is resident at its fullest moments.

The constants were fitted to whole runs of generated checkpoints of 1 to 514 million parameters (Linux, x86-64,
2 cores); the other terms are what each step must hold. Elsewhere the libraries' own share may differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.compression.forecast.precision import gives_gptq_embeddings
from llmcompress.compression.forecast.records import Inventory, Weight
from llmcompress.compression.forecast.stored_bytes import ELEMENT_BYTES, uncompressed_bytes
from llmcompress.graph.segments import MIN_SEGMENT_BYTES
from llmcompress.spec import Calibration, Recipe, Training
from llmcompress.spec.modes import INTEGER
from llmcompress.spec.training import MAX_LOGITS

MIB = 2**20
BY_KERNELS = INTEGER | {"nf4", "fp4", "fp8_e4m3"}
"""Modes whose codes our kernels make."""
LIBRARY_PAGES = 450 * MIB
"""Code and data of torch, transformers, optimum, OpenVINO and NNCF that a run touches."""
HOT_LIBRARY_PAGES = 150 * MIB
"""Part of them without which a run only waits for the disk."""
INTERPRETER_BYTES = 575 * MIB
"""What these libraries allocate, with the traced graph of an empty model."""
LIBRARY_BYTES = INTERPRETER_BYTES + HOT_LIBRARY_PAGES
"""Both, which the system cannot take back."""
GRAPH_BYTES_PER_MODULE = 1_150_000
"""Traced and converted graph, with NNCF's copy of it, for each module with weights."""
KEPT_GRAPH_BYTES_PER_MODULE = 420_000
"""Part of it that is still there when the last weight has been compressed."""
STATISTICS_BYTES_PER_PARAMETER = 3
"""Of the layers that are compiled in f32 to see their activations; the runtime unpacks most weights."""
DATA_AWARE_BYTES_PER_PARAMETER = 2
"""Weights as data-aware methods have changed them."""
CHANGED_BYTES_PER_ELEMENT = 12
"""Of the largest matrix, while they change it in f32."""

QUANTIZE_COPIES = 3
"""Of the weights as they are stored, while activations are quantized: scaled, and compiled."""
SCALED_BYTES_PER_ELEMENT = 20
"""Of the largest weight, while it is scaled in f64."""
TRAINED_BYTES_PER_PARAMETER = 28
"""In f32 the weight, its values, the offset with its gradient, both moments of Adam; and what is in between."""
STATE_BYTES_PER_PARAMETER = 20
"""On disk: the offset, both moments, and the best offset twice, of which one is what a training may go on from."""
LOGITS_COPIES = 4
"""Of them what a step holds."""
ACCURACY_BYTES_PER_PARAMETER = 3
"""What the search for operations to revert holds in addition: the first weights, and one more model at a time."""


class PeakMemory(NamedTuple):
    """Resident memory in bytes."""

    total: int
    """The peak as the system reports it, mapped file pages included."""
    in_memory: int
    """The largest part at any moment that the system cannot take back under pressure."""
    required: int
    """The same where what may wait on disk does: our kernels' codes, rescaled weights and activations."""
    waiting: int
    """So much of them at most: what is done with frees no room there."""


class KernelCodes(NamedTuple):
    """What our kernels will make of an output."""

    num_bytes: int
    are_late: bool
    """Whether they go straight into the file."""


class _Moment(NamedTuple):
    """What is resident at one time."""

    own_bytes: int
    page_bytes: int
    """Of mapped files."""
    waiting_bytes: int = 0
    """Part of its own that may wait on disk."""

    def beside(self, own_bytes: int, page_bytes: int) -> _Moment:
        """With what else is resident."""
        return self._replace(own_bytes=self.own_bytes + own_bytes, page_bytes=self.page_bytes + page_bytes)


def peak_memory(
    inventory: Inventory,
    recipe: Recipe,
    size_bytes: int,
    codes: KernelCodes,
    by_nncf: Sequence[Weight],
    whole: Inventory | None = None,
) -> PeakMemory:
    """Predict the peak of loading, converting and compressing.

    These moments can be the fullest: the trace, when weights the class cannot show in place exist twice; the activation
    statistics, where the recipe has data; the quantization of activations; the first compressed weight, as the largest
    goes first and NNCF works on it in f32; the last one, when the whole output is in memory, but for codes that are
    made where they are saved. What our kernels compress they read in place, and its pages go as soon as it is done.

    Args:
        inventory: The model.
        recipe: What will be done.
        size_bytes: Of the output.
        codes: Part of it.
        by_nncf: The weights that they will not make.
        whole: The model before a pruning; None: nothing is taken away.
    """
    traced = INTERPRETER_BYTES + inventory.num_modules * GRAPH_BYTES_PER_MODULE
    kept = INTERPRETER_BYTES + inventory.num_modules * KEPT_GRAPH_BYTES_PER_MODULE
    copies = inventory.merged_bytes + max(inventory.cast_bytes, inventory.rewritten_bytes)
    pages = inventory.checkpoint_bytes
    # Tracing an f32 model computes with its weights; 16-bit ones stay unread until they are compressed.
    in_f32 = all(ELEMENT_BYTES[w.dtype] == 4 for w in inventory.weights)
    unread = 0 if in_f32 else inventory.mapped_bytes
    while_traced = traced + inventory.merged_bytes + inventory.cast_bytes + inventory.rewritten_bytes
    moments = [_Moment(while_traced, pages - unread)]
    if recipe.activations is not None:
        quantizing = traced + copies + _quantizing(inventory)
        moments.append(_Moment(quantizing + _accuracy_control(inventory, recipe), pages))
    if recipe.weights is None:
        moments.append(_Moment(traced + copies + (size_bytes if recipe.method == "keep" else 0), pages))
    else:
        largest = max(inventory.weights, key=lambda w: w.num_parameters, default=None)
        read = 0 if largest is None else uncompressed_bytes(largest)
        worked_on = max((w.num_parameters * (4 if w.dtype == "f32" else 8) for w in by_nncf), default=0)
        if recipe.calibration is None:
            moments.append(_Moment(traced + copies + worked_on, min(pages, pages - unread + read)))
        else:
            of_data = _data_aware(inventory, recipe, worked_on, is_ours=codes.num_bytes > 0)
            moments += [each.beside(traced + copies, pages) for each in of_data]
        # Where our engine takes no part, pages stay.
        left = pages - inventory.mapped_bytes if codes.num_bytes else pages
        late_bytes = codes.num_bytes if codes.are_late else 0
        moments.append(_Moment(kept + copies + size_bytes - late_bytes, left, codes.num_bytes - late_bytes))
        if recipe.training is not None and not recipe.training.heals:
            moments.append(_Moment(kept + copies + size_bytes + _training(inventory, recipe.training), pages))
    if whole is not None:
        moments.append(_Moment(INTERPRETER_BYTES + _pruning(whole, recipe), whole.checkpoint_bytes))
    return PeakMemory(
        total=max(moment.own_bytes + moment.page_bytes for moment in moments) + LIBRARY_PAGES,
        in_memory=max(moment.own_bytes for moment in moments) + HOT_LIBRARY_PAGES,
        required=max(moment.own_bytes - moment.waiting_bytes for moment in moments) + HOT_LIBRARY_PAGES,
        waiting=sum(moment.waiting_bytes for moment in moments),
    )


def _quantizing(inventory: Inventory) -> int:
    """What quantizing activations holds in addition: all weights scaled, and one in f64 or the compiled model."""
    stored = sum(weight.num_parameters * ELEMENT_BYTES[weight.dtype] for weight in inventory.weights)
    largest = max((weight.num_parameters for weight in inventory.weights), default=0)
    return max(stored + largest * SCALED_BYTES_PER_ELEMENT, stored * QUANTIZE_COPIES)


def training_disk_bytes(inventory: Inventory, recipe: Recipe) -> int:
    """What a training keeps in the cache while it runs: the original's answers, or activations between two layers."""
    training = recipe.training
    if training is None:
        return 0
    num_windows = training.num_used_windows
    state = inventory.num_parameters * STATE_BYTES_PER_PARAMETER
    if training.method == "blocks":
        num_windows = training.num_samples
        hidden = max((weight.shape[-1] for weight in inventory.weights if weight.kind == "embedding"), default=0)
        return state + 3 * 4 * (num_windows + training.num_validation_samples) * training.seq_len * hidden
    num_positions = (num_windows + training.num_validation_samples) * training.seq_len
    return state + num_positions * min(training.num_top_tokens, inventory.vocab_size) * 8


def _pruning(whole: Inventory, recipe: Recipe) -> int:
    """The model in torch in f32, with the sums over one layer's inputs, or with what heals it."""
    pruning, calibration, training = recipe.pruning, recipe.calibration, recipe.training
    assert pruning is not None
    own = 4 * whole.num_parameters
    if calibration is not None and pruning.uses_data:
        own += LOGITS_COPIES * 4 * calibration.seq_len * whole.vocab_size
        if pruning.method in ("width", "wanda", "sparsegpt"):
            matrices = [weight for weight in whole.weights if weight.kind == "matmul" and not weight.is_head]
            # Of all its linear layers at once, and those of the widest once more to be inverted.
            sums = sum(4 * weight.in_channels**2 for weight in matrices) // _num_layers(matrices)
            own += sums + 3 * 4 * max((weight.in_channels for weight in matrices), default=0) ** 2
    heals = training is not None and training.heals
    return max(own, _training(whole, training)) if heals and training is not None else own


def _num_layers(matrices: Sequence[Weight]) -> int:
    """Decoder layers, by the numbers in the weights' names; at least one."""
    return max(1, len({match[1] for weight in matrices if (match := re.search(r"\.(\d+)\.", weight.name))}))


def _training(inventory: Inventory, training: Training) -> int:
    """The model in torch in f32 with what is trained of it, or one layer of it; and a step's activations."""
    num_tokens = training.batch_size * training.seq_len
    largest_logits = max(MAX_LOGITS, training.seq_len * inventory.vocab_size)
    of_logits = LOGITS_COPIES * 4 * min(num_tokens * inventory.vocab_size, largest_logits)
    matrices = [weight for weight in inventory.weights if weight.kind == "matmul"]
    widths = sum(sum(weight.shape[-2:]) for weight in matrices)
    if training.method != "blocks":
        of_model = inventory.num_parameters * TRAINED_BYTES_PER_PARAMETER
        return of_model + of_logits + 4 * num_tokens * widths
    num_layers = _num_layers(matrices)
    of_layer = sum(weight.num_parameters for weight in matrices) // num_layers * TRAINED_BYTES_PER_PARAMETER
    embeddings = sum(weight.num_parameters for weight in inventory.weights if weight.kind == "embedding")
    return of_layer + 4 * num_tokens * widths // num_layers + 4 * embeddings


def _gradients(inventory: Inventory, recipe: Recipe) -> int:
    """Of embeddings that GPTQ makes: the model in torch in f32, and what a window leaves in it for the way back."""
    if recipe.calibration is None or not gives_gptq_embeddings(inventory.weights, recipe):
        return 0
    widths = sum(sum(weight.shape[-2:]) for weight in inventory.weights if weight.kind == "matmul")
    of_token = 4 * (widths + LOGITS_COPIES * inventory.vocab_size)
    return 4 * inventory.num_parameters + recipe.calibration.seq_len * of_token


def _accuracy_control(inventory: Inventory, recipe: Recipe) -> int:
    """The search, and for a divergence the reference's f32 logits of all held-out windows."""
    control = recipe.activations.accuracy_control if recipe.activations else None
    if control is None or recipe.calibration is None:
        return 0
    searched = inventory.num_parameters * ACCURACY_BYTES_PER_PARAMETER
    vocabulary = max((w.shape[0] for w in inventory.weights if w.kind == "embedding"), default=0)
    by_logits = control.metric == "kl_divergence"
    return searched + by_logits * 4 * control.num_samples * recipe.calibration.seq_len * vocabulary


def _data_aware(
    inventory: Inventory, recipe: Recipe, worked_on: int, *, is_ours: bool
) -> tuple[_Moment, _Moment, _Moment]:
    """While activations are seen, while GPTQ reads them, and while weights are changed; NNCF alone keeps all of it."""
    calibration = recipe.calibration
    assert calibration is not None
    between = _between_segments(inventory, calibration)
    statistics = between + _statistics(inventory, calibration, whole=not is_ours)
    read = max(_gptq_inputs(inventory, recipe), _gradients(inventory, recipe))
    changed = inventory.num_parameters * DATA_AWARE_BYTES_PER_PARAMETER
    changing = worked_on + changed + CHANGED_BYTES_PER_ELEMENT * _largest_matrix(inventory)
    return (
        _Moment(statistics, 0, between if is_ours else 0),
        _Moment(read, 0),
        _Moment(changing, 0, changed if is_ours else 0),
    )


def _statistics(inventory: Inventory, calibration: Calibration, *, whole: bool) -> int:
    """The model compiled, whole or its largest segment, and what is kept of the inputs of all layers in each window."""
    matrices = [weight for weight in inventory.weights if weight.kind == "matmul"]
    largest = max((weight.num_parameters for weight in inventory.weights), default=0)
    of_layer = sum(weight.num_parameters for weight in matrices) // _num_layers(matrices)
    # The last one may take what two need, of two bytes each.
    of_segment = 2 * MIN_SEGMENT_BYTES // 2 + of_layer + largest
    num_compiled = inventory.num_parameters if whole else min(inventory.num_parameters, of_segment)
    kept = 4 * calibration.num_samples * sum(weight.in_channels for weight in matrices)
    return num_compiled * STATISTICS_BYTES_PER_PARAMETER + kept


def _largest_matrix(inventory: Inventory) -> int:
    """Elements of it; the output head's, which takes 8 bits, is none of these."""
    matrices = [weight for weight in inventory.weights if weight.kind == "matmul" and not weight.is_head]
    return max((weight.num_parameters for weight in matrices), default=0)


def _between_segments(inventory: Inventory, calibration: Calibration) -> int:
    """What one segment took of the one before, and what it leaves for the next."""
    hidden = max((weight.shape[-1] for weight in inventory.weights if weight.kind == "embedding"), default=0)
    return 2 * 4 * calibration.num_samples * calibration.seq_len * hidden


def _gptq_inputs(inventory: Inventory, recipe: Recipe) -> int:
    """The f32 inputs of one layer in all calibration windows, once as collected and once joined."""
    by_gptq = [weights.advanced.gptq_params.subset_size for weights in recipe.weight_passes if weights.gptq]
    if recipe.calibration is None or not by_gptq:
        return 0
    windows = min(recipe.calibration.num_samples, max(by_gptq))
    widest = max((w.in_channels for w in inventory.weights if w.kind == "matmul"), default=0)
    return 2 * 4 * windows * recipe.calibration.seq_len * widest
