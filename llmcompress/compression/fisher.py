"""The Fisher information of a model in torch, by one forward and backward pass over a few windows.

It is the mean square of the gradient of a label that the model itself draws (arXiv:2002.08056). Of a matrix it is kept
as Kronecker factors, a pair for each use of it (arXiv:1503.05671). Those of a linear layer are the second moments of
its inputs and the squared gradients of its outputs. An embedding looks up its rows: its factors are the second moments
of the gradients of what it gives, and how often each row was looked up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from llmcompress.compression.matrix_uses import MatrixUses, Use, uses_noted
from llmcompress.errors import ModelError
from llmcompress.system.memory import return_large_blocks
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.layers import layer_list


class Factors(NamedTuple):
    """Sums over tokens of one use of a matrix, in f32."""

    columns: torch.Tensor
    """``[num_columns, num_columns]``."""
    rows: torch.Tensor
    """``[num_rows]``."""


def backward_passes(
    model: Any,
    batches: Sequence[NDArray[np.int64]],
    seed: int,
    uses: MatrixUses,
    progress: Reporter,
    *,
    stage: str = "sensitivity",
    recomputed: bool = False,
) -> None:
    """Run batches of windows forth and back, one after the other.

    Args:
        model: Of which the uses are noted.
        batches: int64 ``[num_windows, seq_len]`` each.
        seed: Of the labels.
        uses: Those.
        progress: Told of every batch.
        stage: Its name.
        recomputed: What is inside a decoder layer is not kept for the way back, but computed again.

    Raises:
        OtherUseError: A matrix is not used as is noted.
        ModelError: The model gives logits that are not finite.
    """
    # Activations of a layer would otherwise stay in the heap.
    return_large_blocks()
    generator = torch.Generator().manual_seed(seed)
    done, total = 0, sum(map(len, batches))
    with _layers_recomputed(model, uses) if recomputed else contextlib.nullcontext():
        for batch in batches:
            progress(Progress(stage, done, total, "windows"))
            uses.begin(batch.shape)
            logits = model(torch.from_numpy(batch.copy()), use_cache=False).logits
            uses.check()
            logits.backward(_gradient(model, logits.detach(), generator))
            uses.check()
            done += len(batch)
    progress(Progress(stage, total, total, "windows"))


def _gradient(model: Any, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of the cross entropy with labels that the model draws, by its logits.

    Raises:
        ModelError: These are not finite.
    """
    gradient = torch.empty_like(logits, dtype=torch.float32)
    for window, of_window in zip(logits, gradient, strict=True):
        torch.softmax(window.float(), -1, out=of_window)
        if not torch.isfinite(of_window).all():
            raise ModelError(
                "the model in torch gives NaN or infinite logits, which have no gradient to go by",
                where=type(model).__name__,
                hint="check the original with `llmcompress eval`, and whether its weights are finite",
            )
        labels = torch.multinomial(of_window, 1, generator=generator)
        of_window.scatter_add_(-1, labels, torch.full(labels.shape, -1.0))
    return gradient.to(logits.dtype)


@contextlib.contextmanager
def _layers_recomputed(model: Any, uses: MatrixUses) -> Iterator[None]:
    """Have decoder layers keep what they are given alone, and compute the rest again on the way back.

    Raises:
        ModelError: The model has no list of them.
    """
    _, layers = layer_list(model)
    # torch computes it outside of what is entered around the way back.
    how = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: (contextlib.nullcontext(), uses)}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            vars(layer)["forward"] = functools.partial(checkpoint, layer.forward, **how)
            stack.callback(vars(layer).pop, "forward")
        yield


class FactorSums:
    """Adds up the factors of matrices, use by use; a head that shares its weight with an embedding is a second use."""

    def __init__(self) -> None:
        """Begin with none."""
        self.found: dict[str, list[Factors]] = {}
        self._of_use: dict[tuple[str, bool], Factors] = {}

    def add(self, use: Use, num_rows: int) -> None:
        """Add what one use of a matrix of so many rows gives."""
        factors = self._of_use.get((use.name, use.is_lookup))
        if factors is None:
            num_columns = (use.gradient if use.is_lookup else use.given).shape[-1]
            factors = Factors(torch.zeros(num_columns, num_columns), torch.zeros(num_rows))
            self._of_use[use.name, use.is_lookup] = factors
            self.found.setdefault(use.name, []).append(factors)
        gradient = use.gradient.flatten(0, -2)
        if use.is_lookup:
            factors.columns.addmm_(gradient.T, gradient)
            factors.rows.add_(torch.bincount(use.given.flatten(), minlength=num_rows))
        else:
            given = use.given.flatten(0, -2)
            factors.columns.addmm_(given.T, given)
            factors.rows.add_(gradient.square().sum(0))


@contextlib.contextmanager
def factors_by_modules(model: Any, names: Collection[str], sums: FactorSums) -> Iterator[None]:
    """Add the factors of matrices whose uses are not noted, where they are the weights of linear layers and embeddings.

    Args:
        model: In which they require gradients.
        names: Of these.
        sums: What is added to.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters() if name in names}

    def add(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        name, inputs, is_lookup = name_of[id(module.weight)], given[0].detach(), isinstance(module, torch.nn.Embedding)
        num_rows = len(module.weight)
        result.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: sums.add(Use(name, inputs, gradient, is_lookup), num_rows)
        )

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            is_known = isinstance(module, torch.nn.Linear) or type(module) is torch.nn.Embedding
            if is_known and id(module.weight) in name_of:
                stack.callback(module.register_forward_hook(add).remove)
        yield


def embedding_names(model: Any) -> frozenset[str]:
    """Names of the parameters that are looked up."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return frozenset(name_of[id(table.weight)] for table in _tables(model))


def embedding_moments(
    model: Any, names: Collection[str], token_ids: NDArray[np.int64], seed: int, progress: Reporter
) -> dict[str, NDArray[np.float32]]:
    """What GPTQ of embeddings goes by, in the place of a layer's inputs: of which error in a row the model loses most.

    Args:
        model: Of the checkpoint's precision; requires no gradients afterwards.
        names: Of the parameters.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.

    Returns:
        By name float32 ``[num_columns, num_columns]``, symmetric: of each use the factor of the columns, times the sum
        of that of the rows; the mean of the diagonal is 1.

    Raises:
        ModelError: torch has no such embedding, or the model gives logits that are not finite.
    """
    _require_embeddings(names, embedding_names(model))
    model.requires_grad_(False)
    sums, num_rows = FactorSums(), {name: len(model.get_parameter(name)) for name in names}
    with uses_noted(model, names, lambda use: sums.add(use, num_rows[use.name]), once=False) as noted:
        windows = [window[None] for window in token_ids]
        backward_passes(model, windows, seed, noted, progress, stage="gradients of embeddings")
    _require_embeddings(names, sums.found.keys())
    moments = {}
    for name, uses in sums.found.items():
        together = sum(each.columns * each.rows.sum() for each in uses)
        assert isinstance(together, torch.Tensor)
        moments[name] = (together / together.diagonal().mean()).numpy()
    return moments


def _require_embeddings(names: Collection[str], found: Collection[str]) -> None:
    missing = sorted(set(names) - set(found))
    if missing:
        raise ModelError(
            f"{missing[0]} is no embedding of the model in torch, whose gradients GPTQ of embeddings goes by",
            where="weights.rules",
            hint="write method: data_free into the rule of this weight",
        )


def _tables(model: Any) -> list[Any]:
    """Embeddings of token ids and others that look up what they are given; some of positions compute it first."""
    of_tokens = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return [each for each in model.modules() if type(each) is torch.nn.Embedding or each is of_tokens]
