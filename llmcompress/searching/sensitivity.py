"""How much each weight's error costs, by one forward and backward pass over a few windows.

The KL divergence of a slightly changed model from the original is half the error's quadratic form with the Fisher
matrix (Kullback 1959). Its diagonal is the mean square of the gradient of a label that the model itself draws
(arXiv:2002.08056). It says what rounding costs, whose errors have nothing to do with each other. Those of GPTQ make up
for each other, which the diagonal does not see: of a matrix their cost is taken by the Kronecker factors of the Fisher
matrix, the second moments of the inputs and the squared gradients of the outputs (arXiv:1503.05671).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.system.progress import Progress, Reporter


class Sensitivity(NamedTuple):
    """Sums over tokens, by the names of the model's parameters."""

    num_tokens: int
    diagonal: dict[str, torch.Tensor]
    """Squared gradients of each window's loss, f32, of the parameters' shapes."""
    inputs: dict[str, torch.Tensor]
    """Of matrices, where it was asked for: products of the inputs, f32 ``[num_columns, num_columns]``."""
    outputs: dict[str, torch.Tensor]
    """The same: squared gradients of the outputs, f32 ``[num_rows]``."""

    def cost(self, name: str, error: torch.Tensor) -> float:
        """The KL divergence in nats a token that rounding adds.

        Args:
            name: Of the parameter.
            error: Of its shape; overwritten.
        """
        return float(error.square_().mul_(self.diagonal[name]).sum()) / (2 * self.num_tokens)

    def joint_cost(self, name: str, error: torch.Tensor) -> float:
        """The same of a matrix whose errors make up for each other."""
        of_rows = (error @ self.inputs[name]).mul_(error).sum(1)
        return float(of_rows @ self.outputs[name]) / (2 * self.num_tokens**2)


def sensitivity(
    model: Any, token_ids: NDArray[np.int64], seed: int, progress: Reporter, *, jointly: bool = False
) -> Sensitivity:
    """Run each window forth and back once.

    Args:
        model: In f32; all of its matrices are looked at.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.
        jointly: For errors that make up for each other as well.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    model.requires_grad_(False)
    found = Sensitivity(token_ids.size, {}, {}, {})
    for name, parameter in matrices.items():
        parameter.requires_grad_(True)
        found.diagonal[name] = torch.zeros_like(parameter)
    with _factors_summed(model, found) if jointly else contextlib.nullcontext():
        for number, window in enumerate(token_ids):
            progress(Progress("sensitivity", number, len(token_ids), "windows"))
            logits = model(torch.from_numpy(window[None].copy()), use_cache=False).logits[0].float()
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            for name, parameter in matrices.items():
                if parameter.grad is not None:
                    found.diagonal[name].addcmul_(parameter.grad, parameter.grad)
                    parameter.grad = None
    progress(Progress("sensitivity", len(token_ids), len(token_ids), "windows"))
    return found


@contextlib.contextmanager
def _factors_summed(model: Any, found: Sensitivity) -> Iterator[None]:
    """Add up the factors of every linear layer in each pass."""
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = f"{path}.weight"
            found.inputs[name] = torch.zeros(module.in_features, module.in_features)
            found.outputs[name] = torch.zeros(module.out_features)
            handles.append(module.register_forward_hook(_summing(found.inputs[name], found.outputs[name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summing(inputs: torch.Tensor, outputs: torch.Tensor) -> Any:
    def add_gradient(gradient: torch.Tensor) -> None:
        outputs.add_(gradient.flatten(0, -2).square().sum(0))

    def add(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        rows = given[0].detach().flatten(0, -2)
        inputs.addmm_(rows.T, rows)
        result.register_hook(add_gradient)  # type: ignore[no-untyped-call]

    return add
