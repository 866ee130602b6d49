"""The Fisher information of a model in torch, by one forward and backward pass over a few windows.

It is the mean square of the gradient of a label that the model itself draws (arXiv:2002.08056). Of a matrix it is kept
as Kronecker factors, a pair for each use of it (arXiv:1503.05671). Those of a linear layer are the second moments of
its inputs and the squared gradients of its outputs. An embedding looks up its rows: its factors are the second moments
of the gradients of what it gives, and how often each row was looked up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.errors import ModelError
from llmcompress.system.progress import Progress, Reporter


class Factors(NamedTuple):
    """Sums over tokens of one use of a matrix, in f32."""

    columns: torch.Tensor
    """``[num_columns, num_columns]``."""
    rows: torch.Tensor
    """``[num_rows]``."""


def backward_passes(
    model: Any, token_ids: NDArray[np.int64], seed: int, progress: Reporter, stage: str = "sensitivity"
) -> Iterator[None]:
    """Run each window forth and back once; the caller says before of what gradients are, and has them after each.

    Args:
        model: In f32.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.
        stage: Its name.
    """
    generator = torch.Generator().manual_seed(seed)
    for number, window in enumerate(token_ids):
        progress(Progress(stage, number, len(token_ids), "windows"))
        logits = model(torch.from_numpy(window[None].copy()), use_cache=False).logits[0].float()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        yield
    progress(Progress(stage, len(token_ids), len(token_ids), "windows"))


@contextlib.contextmanager
def factors_summed(model: Any, names: Collection[str] | None = None) -> Iterator[dict[str, list[Factors]]]:
    """Add up the factors of linear layers and embeddings in each pass, by the names of parameters.

    Args:
        model: In f32.
        names: Of the parameters; None: all. A head that shares its weight with an embedding is a second use of it.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = _tables(model)
    found: dict[str, list[Factors]] = {}
    handles = []
    for module in (*tables, *(each for each in model.modules() if isinstance(each, torch.nn.Linear))):
        name = name_of.get(id(module.weight))
        if name is None or (names is not None and name not in names):
            continue
        num_rows, num_columns = module.weight.shape
        factors = Factors(torch.zeros(num_columns, num_columns), torch.zeros(num_rows))
        found.setdefault(name, []).append(factors)
        summing = _of_embedding if module in tables else _of_linear
        handles.append(module.register_forward_hook(summing(factors)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def embedding_names(model: Any) -> frozenset[str]:
    """Names of the parameters that are looked up."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return frozenset(name_of[id(table.weight)] for table in _tables(model))


def embedding_moments(
    model: Any, names: Collection[str], token_ids: NDArray[np.int64], seed: int, progress: Reporter
) -> dict[str, NDArray[np.float32]]:
    """What GPTQ of embeddings goes by, in the place of a layer's inputs: of which error in a row the model loses most.

    Args:
        model: In f32; requires no gradients afterwards.
        names: Of the parameters.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.

    Returns:
        By name float32 ``[num_columns, num_columns]``, symmetric: of each use the factor of the columns, times the sum
        of that of the rows; the mean of the diagonal is 1.

    Raises:
        ModelError: torch has no such embedding.
    """
    missing = sorted(set(names) - embedding_names(model))
    if missing:
        raise ModelError(
            f"{missing[0]} is no embedding of the model in torch, whose gradients GPTQ of embeddings goes by",
            where="weights.rules",
            hint="write method: data_free into the rule of this weight",
        )
    model.requires_grad_(False)
    with factors_summed(model, names) as found:
        for _ in backward_passes(model, token_ids, seed, progress, "gradients of embeddings"):
            pass
    moments = {}
    for name, uses in found.items():
        total = sum(each.columns * each.rows.sum() for each in uses)
        assert isinstance(total, torch.Tensor)
        moments[name] = (total / total.diagonal().mean()).numpy()
    return moments


_Hook = Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor | None]


def _tables(model: Any) -> list[Any]:
    """Embeddings of token ids and others that look up what they are given; some of positions compute it first."""
    of_tokens = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return [each for each in model.modules() if type(each) is torch.nn.Embedding or each is of_tokens]


def _of_linear(factors: Factors) -> _Hook:
    def add_gradient(gradient: torch.Tensor) -> None:
        factors.rows.add_(gradient.flatten(0, -2).square().sum(0))

    def add(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        rows = given[0].detach().flatten(0, -2)
        factors.columns.addmm_(rows.T, rows)
        if result.requires_grad:
            result.register_hook(add_gradient)  # type: ignore[no-untyped-call]

    return add


def _of_embedding(factors: Factors) -> _Hook:
    def add_gradient(gradient: torch.Tensor) -> None:
        rows = gradient.flatten(0, -2)
        factors.columns.addmm_(rows.T, rows)

    def add(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
        factors.rows.add_(torch.bincount(given[0].flatten(), minlength=len(factors.rows)))
        # With a frozen table the graph begins here; a copy, since what follows may work in place.
        begun = result if result.requires_grad else result.detach().requires_grad_()
        begun.register_hook(add_gradient)  # type: ignore[no-untyped-call]
        return begun if begun is result else begun.clone()

    return add
