"""How much each weight's error costs: the diagonal of the Fisher information, by one pass over a few windows.

The KL divergence of a slightly changed model from the original is half the error's quadratic form with the Fisher
matrix (Kullback 1959); its diagonal is the mean square of the gradient of a label that the model itself draws
(arXiv:2002.08056).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.system.progress import Progress, Reporter


def fisher(model: Any, token_ids: NDArray[np.int64], seed: int, progress: Reporter) -> dict[str, torch.Tensor]:
    """Sums over windows of the squared gradient of a window's loss, by the names of the model's parameters.

    Args:
        model: In f32; all of its matrices are looked at.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.

    Returns:
        f32, of the parameters' shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    model.requires_grad_(False)
    sums = {}
    for name, parameter in matrices.items():
        parameter.requires_grad_(True)
        sums[name] = torch.zeros_like(parameter)
    for number, window in enumerate(token_ids):
        progress(Progress("sensitivity", number, len(token_ids), "windows"))
        logits = model(torch.from_numpy(window[None].copy()), use_cache=False).logits[0].float()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        for name, parameter in matrices.items():
            if parameter.grad is not None:
                sums[name].addcmul_(parameter.grad, parameter.grad)
                parameter.grad = None
    progress(Progress("sensitivity", len(token_ids), len(token_ids), "windows"))
    return sums
