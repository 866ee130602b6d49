"""How much each weight's error costs, by one forward and backward pass over a few windows.

The KL divergence of a slightly changed model from the original is half the error's quadratic form with the Fisher
matrix (Kullback 1959). Its diagonal says what rounding costs, whose errors have nothing to do with each other. Those of
GPTQ make up for each other, which the diagonal does not see: of a matrix their cost is taken by the Kronecker factors
of the Fisher matrix.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.compression.fisher import Factors, FactorSums, backward_passes, factors_by_modules
from llmcompress.compression.matrix_uses import MatrixUses, OtherUseError, Use, uses_noted
from llmcompress.errors import ModelError
from llmcompress.searching.pieces import Piece
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Reporter
from llmcompress.training.layers import forget, layer_list

LOGITS_SHARE = 1 / 16
"""Of the number of parameters, that logits of windows which go together may be."""


class Sensitivity(NamedTuple):
    """Sums over tokens, by the names of the model's parameters."""

    num_tokens: int
    diagonal: dict[str, torch.Tensor]
    """Squared gradients of each window's loss, f32, of the parameters' shapes, in a file."""
    factors: dict[str, list[Factors]]
    """Of matrices, where it was asked for, of each use."""

    def cost(self, name: str, error: torch.Tensor, piece: Piece | None = None) -> float:
        """The KL divergence in nats a token that rounding adds; of experts that were not called as if of the others.

        Args:
            name: Of the parameter.
            error: Of its shape, or of the piece's; overwritten.
            piece: Of a stack of experts.
        """
        diagonal = self.diagonal[name]
        found = float(error.square_().mul_(diagonal if piece is None else piece.of(diagonal)).sum())
        forget(diagonal.numpy())
        if diagonal.ndim == 3:
            called = self.called(name)
            found *= len(called) / max(int(called.sum()), 1)
        return found / (2 * self.num_tokens)

    def cost_by(self, name: str, squares: Callable[[NDArray[np.float32]], float | None]) -> float | None:
        """The same of a matrix, by who sums its squared errors.

        Args:
            name: Of the parameter.
            squares: Takes a factor for each error, as the matrix lies in memory; None: it cannot tell.
        """
        found = squares(self.diagonal[name].numpy().reshape(-1))
        forget(self.diagonal[name].numpy())
        return None if found is None else found / (2 * self.num_tokens)

    def called(self, stack: str) -> torch.Tensor:
        """Which experts of a stack some token was sent to, bool ``[experts]``."""
        return self.diagonal[stack].flatten(1).any(1)

    def joint_cost(self, name: str, error: torch.Tensor) -> float:
        """The same of a matrix whose errors make up for each other."""
        of_uses = (float((error @ use.columns).mul_(error).sum(1) @ use.rows) for use in self.factors[name])
        return sum(of_uses) / (2 * self.num_tokens**2)


def sensitivity(
    model: Any, token_ids: NDArray[np.int64], seed: int, place: Path, progress: Reporter, *, jointly: bool = False
) -> Sensitivity:
    """Run each window forth and back once.

    Windows go together where each matrix tells their tokens apart, with the insides of decoder layers computed again on
    the way back: sums of squares are then written once or a few times, in place of once a window.

    Args:
        model: Of the checkpoint's precision; matrices stay so, where they are only multiplied by or looked up.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        place: Existing directory, where the squares lie as long as the result does.
        progress: Told of every step.
        jointly: For errors that make up for each other as well.

    Raises:
        ModelError: The model gives logits that are not finite.
    """
    run = _Run(model, token_ids, seed, place, jointly)
    # Of stacks of experts and convolutions gradients are asked for as a whole, of one window at a time.
    wholes = frozenset(name for name, parameter in model.named_parameters() if parameter.ndim > 2)
    together = 1 if wholes else _num_together(model, token_ids)
    while True:
        try:
            return _summed(run, wholes, together, progress)
        except OtherUseError as error:
            wholes, together = wholes | error.names, 1


class _Run(NamedTuple):
    """What is asked for."""

    model: Any
    token_ids: NDArray[np.int64]
    seed: int
    place: Path
    jointly: bool


def _num_together(model: Any, token_ids: NDArray[np.int64]) -> int:
    """Windows at a time, whose logits are few beside the model's parameters."""
    try:
        layer_list(model)
    except (AttributeError, ModelError):
        return 1
    num_parameters: int = sum(parameter.numel() for parameter in model.parameters())
    of_window: int = token_ids.shape[1] * model.config.get_text_config().vocab_size
    # As many as a window's tokens could not be told from these.
    num_fitting, num_tokens = int(LOGITS_SHARE * num_parameters) // of_window, int(token_ids.shape[1])
    return max(1, min(num_fitting, num_tokens - 1))


def _summed(run: _Run, wholes: frozenset[str], together: int, progress: Reporter) -> Sensitivity:
    """One attempt.

    Raises:
        OtherUseError: A matrix, which it may name, is used otherwise.
    """
    run.model.requires_grad_(False)
    parameters = {name: parameter for name, parameter in run.model.named_parameters() if parameter.ndim >= 2}
    squares, factors = _Squares(parameters, FileMemory(run.place)), FactorSums()

    def note(use: Use) -> None:
        if together > 1 and not _has_windows(use, noted.shape):
            raise OtherUseError(())
        squares.add(use, noted, together)
        if run.jointly:
            factors.add(use, len(parameters[use.name]))

    with contextlib.ExitStack() as stack:
        for name in wholes:
            parameter = parameters[name].requires_grad_(True)
            handle = parameter.register_post_accumulate_grad_hook(functools.partial(squares.add_whole, name))
            stack.callback(handle.remove)
        if run.jointly:
            stack.enter_context(factors_by_modules(run.model, wholes, factors))
        noted = stack.enter_context(uses_noted(run.model, parameters.keys() - wholes, note, once=True))
        batches = [run.token_ids[first : first + together] for first in range(0, len(run.token_ids), together)]
        backward_passes(run.model, batches, run.seed, noted, progress, recomputed=together > 1)
    return Sensitivity(run.token_ids.size, squares.sums, factors.found)


def _has_windows(use: Use, shape: tuple[int, ...]) -> bool:
    """Whether its tensors are ``[num_windows, seq_len, ...]``."""
    given = use.given.shape if use.is_lookup else use.given.shape[:-1]
    return given == shape and use.gradient.shape[:-1] == shape


class _Squares:
    """Adds up squared gradients of windows."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], memory: FileMemory) -> None:
        self._kept: dict[str, list[torch.Tensor]] = {}
        """Of a head that shares its weight with an embedding: gradients of the rows that were looked up."""
        self.sums = {name: _zeros(parameter.shape, memory) for name, parameter in parameters.items()}

    def add(self, use: Use, noted: MatrixUses, together: int) -> None:
        """Add those of one use."""
        total = self.sums[use.name]
        if use.is_lookup:
            self._add_lookup(use, total, together)
        else:
            self._add_product(use, total, noted, together)
        forget(total.numpy())

    def add_whole(self, name: str, parameter: torch.Tensor) -> None:
        """Add a parameter's gradient, and let it go: together they would take as much memory as the squares."""
        assert parameter.grad is not None
        self.sums[name].addcmul_(parameter.grad, parameter.grad)
        forget(self.sums[name].numpy())
        parameter.grad = None

    def _add_product(self, use: Use, total: torch.Tensor, noted: MatrixUses, together: int) -> None:
        looked_up = noted.looked_up.get(use.name)
        rows = _by_window(looked_up, 0, together) if looked_up is not None else itertools.repeat(None)
        windows = zip(_by_window(use.given, 1, together), _by_window(use.gradient, 1, together), rows, strict=False)
        for given, gradient, of_rows in windows:
            found = noted.of_matrix(gradient, given)
            total.addcmul_(found, found)
            if of_rows is not None:
                self._kept.setdefault(use.name, []).append(found[torch.unique(of_rows)])

    def _add_lookup(self, use: Use, total: torch.Tensor, together: int) -> None:
        kept = self._kept.pop(use.name, None)
        windows = zip(_by_window(use.given, 0, together), _by_window(use.gradient, 1, together), strict=True)
        for number, (given, gradient) in enumerate(windows):
            rows, place = torch.unique(given, return_inverse=True)
            found = torch.zeros(len(rows), total.shape[1]).index_add_(0, place, gradient)
            squared = found.square()
            if kept is not None:
                # The square of the sum, of which that of the product is there already.
                squared.addcmul_(found, kept[number], value=2)
            total.index_add_(0, rows, squared)


def _by_window(values: torch.Tensor, num_further: int, together: int) -> Iterator[torch.Tensor]:
    """Tokens of each window, ``[num_tokens, ...]``."""
    shape = values.shape[values.ndim - num_further :]
    return iter(values.reshape(len(values) if together > 1 else 1, -1, *shape))


def _zeros(shape: torch.Size, memory: FileMemory) -> torch.Tensor:
    block = memory.block(4 * shape.numel())
    return torch.zeros(shape) if block is None else torch.from_numpy(block).view(torch.float32).view(shape)
