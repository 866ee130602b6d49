"""Where torch trains, and in which precision it multiplies there."""

from __future__ import annotations

import contextlib
from typing import Literal

import openvino as ov
import torch

from llmcompress.errors import UsageError


def training_device(asked: Literal["auto", "cpu", "cuda", "xpu"]) -> torch.device:
    """The device that a recipe asks for; auto: the accelerator that torch finds, else the processor.

    Raises:
        UsageError: This machine does not have it.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if asked == "auto":
        return found if found is not None and found.type in ("cuda", "xpu") else torch.device("cpu")
    if asked != "cpu" and (found is None or found.type != asked):
        raise UsageError(
            f"torch finds no {asked} device here",
            where="training.device",
            hint="write auto or cpu, or install the build of torch for that device",
        )
    return torch.device(asked)


def multiplies_in(device: torch.device) -> Literal["bf16", "f32"]:
    """The precision of the products in a step: bf16 where the device computes in it faster."""
    if device.type == "cpu":
        has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    else:
        has_bf16 = bool(torch.get_device_module(device).is_bf16_supported())
    return "bf16" if has_bf16 else "f32"


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Products in bf16 where that is faster; sums, weights and the loss stay in f32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_in(device) == "bf16")
