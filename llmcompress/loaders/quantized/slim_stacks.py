"""Stacks of experts in a trace: slim stand-ins, whose numbers say in the graph what they stand for.

The exporter casts, cuts and transposes stacks into new memory. What it does depends on no stack's inner width, so that
a few rows of one number each stand in for them, and their constants are known by that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.loaders.quantized.stored import StoredWeight

if TYPE_CHECKING:
    import torch

_WIDTH = 2
_OF_ONE_BY_ONE = "weight"
"""What modules that multiply by one expert after the other (Granite-MoE) call their stack."""
_FIRST_PATTERN = 0x4B51
"""Of 16 bits that are an odd number in f16 and bf16, as are the thousands after it."""


class StackParameter(NamedTuple):
    """A parameter of the model's class that is a stack, or two on top of each other."""

    name: str
    shape: tuple[int, ...]
    weights: tuple[str, ...]
    """One name, or those of its halves."""
    transposed: bool

    @property
    def inner_axis(self) -> int:
        """The axis of the experts' inner width."""
        return 2 if self.name.endswith("down_proj") != self.transposed else 1


class SlimStacks(NamedTuple):
    """What the numbers in a traced graph stand for; filled by ``slim``."""

    weights: dict[float, str]
    """Names of quantized weights."""
    biases: dict[float, torch.Tensor]
    matrices: dict[int, tuple[str, int]]
    """What classes multiply by expert by expert: its stack and its number, by the address of what stands in for it."""


def stack_parameters(weights: Iterable[StoredWeight]) -> list[StackParameter]:
    """The parameters that the stacks among some weights belong to."""
    found: dict[str, list[StoredWeight]] = {}
    for weight in weights:
        if len(weight.shape) == 3:
            found.setdefault(weight.name.removesuffix(".0").removesuffix(".1"), []).append(weight)
    parameters = []
    for name, halves in found.items():
        halves.sort(key=lambda weight: weight.name)
        shape = list(halves[0].parameter[1])
        shape[1] *= len(halves)
        names = tuple(weight.name for weight in halves)
        parameters.append(StackParameter(name, tuple(shape), names, halves[0].transposed))
    return parameters


def slim(model: Any, parameters: Mapping[int, StackParameter]) -> SlimStacks:
    """Put slim stand-ins in the place of a loaded model's stacks.

    Args:
        model: A torch module; changed in place.
        parameters: By the address of what was loaded for each.
    """
    import torch

    found = SlimStacks({}, {}, {})
    for path, tensor in list(model.named_parameters()):
        parameter = parameters.get(tensor.data_ptr())
        if parameter is None:
            continue
        module, _, attribute = path.rpartition(".")
        if attribute == _OF_ONE_BY_ONE:
            _take_apart(model.get_submodule(module), tensor, parameter.name, found)
            continue
        owner, width = model.get_submodule(module), _WIDTH * (1 if attribute.endswith("down_proj") else 2)
        shape = list(parameter.shape)
        shape[parameter.inner_axis] = width
        stand_in = torch.empty(shape, dtype=tensor.dtype)
        for name, part in zip(parameter.weights, stand_in.chunk(len(parameter.weights), 1), strict=True):
            found.weights[_fill(part, found)] = name
        setattr(owner, attribute, torch.nn.Parameter(stand_in, requires_grad=False))
        bias = getattr(owner, f"{attribute}_bias", None)
        if bias is not None and bias.shape[-1] == parameter.shape[parameter.inner_axis]:
            slim_bias = torch.empty((*bias.shape[:-1], width), dtype=bias.dtype)
            found.biases[_fill(slim_bias, found)] = bias.detach()
            setattr(owner, f"{attribute}_bias", torch.nn.Parameter(slim_bias, requires_grad=False))
    return found


def _take_apart(owner: Any, stack: torch.Tensor, name: str, found: SlimStacks) -> None:
    """Give a module that multiplies expert by expert a list of matrices, each where it lies in the stack."""
    import torch

    parts = []
    for number, matrix in enumerate(stack.detach()):
        # The converter makes one of constants that are equal.
        matrix.view(-1)[0] = 2 + len(found.matrices)
        found.matrices[matrix.data_ptr()] = name, number
        parts.append(torch.nn.Parameter(matrix, requires_grad=False))
    delattr(owner, _OF_ONE_BY_ONE)
    setattr(owner, _OF_ONE_BY_ONE, torch.nn.ParameterList(parts))


def _fill(tensor: torch.Tensor, found: SlimStacks) -> float:
    """Fill a tensor with a number that no other has."""
    import torch

    pattern = torch.tensor(_FIRST_PATTERN + len(found.weights) + len(found.biases), dtype=torch.int16)
    number = float(pattern.view(torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float16))
    tensor.fill_(number)
    return number
