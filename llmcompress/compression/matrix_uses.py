"""What a model in torch uses its matrices for, noted while it runs forth and back.

Sums are in f32, products in bf16 where the processor computes in it and else in f32. Matrices stay in the precision in
which they were loaded, which may be mapped from the checkpoint: each is made f32 where it is used, in a place that all
share, and has no gradient that would stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from llmcompress.training.devices import multiplies_in


class Use(NamedTuple):
    """One use of a matrix."""

    name: str
    given: torch.Tensor
    """What it was multiplied by, f32 ``[num_windows, ..., num_columns]``, or the rows that were looked up, int64."""
    gradient: torch.Tensor
    """Of what came out, f32 ``[num_windows, ..., num_rows]``, where rows were looked up ``[..., num_columns]``."""
    is_lookup: bool


Note = Callable[[Use], None]


class OtherUseError(Exception):
    """A matrix is used in a way that cannot be noted."""

    def __init__(self, names: Collection[str]) -> None:
        """Take the names of the matrices."""
        super().__init__(", ".join(sorted(names)))
        self.names = frozenset(names)


@contextlib.contextmanager
def uses_noted(model: Any, names: Collection[str], note: Note, *, once: bool) -> Iterator[MatrixUses]:
    """Have each product with some matrices, and each lookup of their rows, noted in the backward pass.

    Args:
        model: All of its parameters become f32, and stay so, but matrices that require no gradient.
        names: Of these, whose uses are noted.
        note: Called with each use, from the last one to the first.
        once: ``MatrixUses.check`` refuses second uses of a kind in a pass, and other ones.
    """
    matrices = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not parameter.requires_grad:
            matrices[id(parameter)] = (name, parameter.detach())
        else:
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.float()
    uses = MatrixUses(matrices, frozenset(names), note, once=once)
    try:
        with uses:
            yield uses
    finally:
        uses.end()


class MatrixUses(TorchFunctionMode):
    """Takes the place of products with matrices and of looking up their rows."""

    def __init__(
        self, matrices: Mapping[int, tuple[str, torch.Tensor]], names: frozenset[str], note: Note, *, once: bool
    ) -> None:
        """Take the matrices by the identity of their parameters, with their names."""
        super().__init__()
        self._matrices, self._names, self._note, self._once = matrices, names, note, once
        self.looked_up: dict[str, torch.Tensor] = {}
        """Rows of matrices, in this pass."""
        self.shape: tuple[int, ...] = ()
        """Of the token ids of this pass."""
        self._others: set[str] = set()
        self._used: set[tuple[str, bool]] = set()
        self._anchor = torch.zeros((), requires_grad=True)
        self._in_bf16 = multiplies_in(torch.device("cpu")) == "bf16"
        largest = max((each.numel() for _, each in matrices.values()), default=0)
        # Memory that is asked for anew for each product is dear.
        self._room = torch.empty(largest)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note products and lookups; what is asked for a matrix's type is told f32."""
        kwargs = kwargs or {}
        found = [each for each in _flat((*args, *kwargs.values())) if id(each) in self._matrices]
        if not found:
            return function(*args, **kwargs)
        if function == _GET_DTYPE:
            return torch.float32
        place = _PLACES.get(function)
        if place is not None and len(found) == 1 and len(args) > place and args[place] is found[0]:
            return self._noted(function, args, kwargs)
        matrices = {id(each): self._matrices[id(each)][1] for each in found}
        if sum(isinstance(each, torch.Tensor) for each in _flat((*args, *kwargs.values()))) == 1:
            # Shape, device and the like need no copy.
            result = function(*_swapped(args, matrices), **_swapped(kwargs, matrices))
            if not any(isinstance(each, torch.Tensor) for each in _flat((result,))):
                return result
        self._others |= {self._matrices[id(each)][0] for each in found} & self._names
        copies = {key: each.float() for key, each in matrices.items()}
        return function(*_swapped(args, copies), **_swapped(kwargs, copies))

    def begin(self, shape: tuple[int, ...]) -> None:
        """Another pass begins, in which each matrix is used once.

        Args:
            shape: Of its token ids, ``(num_windows, seq_len)``.
        """
        self.shape = shape
        self._used.clear()
        self.looked_up.clear()

    def end(self) -> None:
        """Let go of all memory: who notes may hold what is noted for."""
        self._note, self._room = _ignored, torch.empty(0)
        self.looked_up.clear()

    def check(self) -> None:
        """Say which matrices were used otherwise than once.

        Raises:
            OtherUseError: Some were.
        """
        if self._others and self._once:
            raise OtherUseError(self._others)

    def linear(self, given: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``torch.nn.functional.linear`` of f32 and a matrix, in f32."""
        if not self._in_bf16:
            return torch.nn.functional.linear(given, self._in_f32(matrix), bias)
        found = torch.nn.functional.linear(given.bfloat16(), matrix.bfloat16()).float()
        return found if bias is None else found + bias

    def of_given(self, gradient: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """The gradient of what ``linear`` was given, by that of what came out."""
        if not self._in_bf16:
            return gradient @ self._in_f32(matrix)
        return (gradient.bfloat16() @ matrix.bfloat16()).float()

    def of_matrix(self, gradient: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """The gradient of the matrix, f32, until the next product is asked for.

        Args:
            gradient: Of what came out, ``[num_tokens, num_rows]``.
            given: ``[num_tokens, num_columns]``.
        """
        place = self._place(torch.Size((gradient.shape[1], given.shape[1])))
        if not self._in_bf16:
            return torch.mm(gradient.T, given, out=place)
        return place.copy_(gradient.bfloat16().T @ given.bfloat16())

    def _in_f32(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix if matrix.dtype == torch.float32 else self._place(matrix.shape).copy_(matrix)

    def _place(self, shape: torch.Size) -> torch.Tensor:
        return self._room[: shape.numel()].view(shape)

    def note(self, use: Use) -> None:
        """Hand a use over."""
        if use.name not in self._names:
            return
        if (use.name, use.is_lookup) in self._used:
            self._others.add(use.name)
        self._used.add((use.name, use.is_lookup))
        if not (self._others and self._once):
            self._note(use)

    def _noted(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if function == torch.nn.functional.linear:
            given, parameter, *rest = args
            bias = rest[0] if rest else kwargs.get("bias")
            return _Product.apply(given.float(), self._anchor, *self._matrices[id(parameter)], bias, self)  # type: ignore[no-any-return]
        given, parameter = args[:2] if function == torch.nn.functional.embedding else (args[1], args[0])
        return _Lookup.apply(self._anchor, given, *self._matrices[id(parameter)], self)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: torch.Tensor,
        anchor: torch.Tensor,
        name: str,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        uses: MatrixUses,
    ) -> torch.Tensor:
        ctx.save_for_backward(given)
        ctx.matrix, ctx.name, ctx.uses = matrix, name, uses
        return uses.linear(given, matrix, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (given,) = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            ctx.uses.note(Use(ctx.name, given, gradient, is_lookup=False))
            of_given = ctx.uses.of_given(gradient, ctx.matrix) if ctx.needs_input_grad[0] else None
        return of_given, None, None, None, None, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, given: torch.Tensor, name: str, matrix: torch.Tensor, uses: MatrixUses
    ) -> torch.Tensor:
        # What is looked up depends on no parameter that has a gradient: the anchor has one in their place.
        ctx.save_for_backward(given)
        ctx.name, ctx.uses = name, uses
        uses.looked_up[name] = given
        return torch.nn.functional.embedding(given, matrix).float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (given,) = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            ctx.uses.note(Use(ctx.name, given, gradient, is_lookup=True))
        return None, None, None, None, None


def _ignored(use: Use) -> None:
    pass


_GET_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_PLACES = {torch.nn.functional.linear: 1, torch.nn.functional.embedding: 1, torch.embedding: 0}
"""Of the matrix among the arguments."""


def _flat(values: Collection[Any]) -> Iterator[Any]:
    for each in values:
        if isinstance(each, (tuple, list)):
            yield from _flat(each)
        else:
            yield each


def _swapped(values: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(values, dict):
        return {name: _swapped(each, copies) for name, each in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_swapped(each, copies) for each in values)
    return copies.get(id(values), values)
