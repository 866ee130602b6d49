"""GPTQ of embeddings inside NNCF's, which takes layers that multiply: by the gradients of what an embedding gives.

A row is looked up and not multiplied. What an error in it does to the model's output is told by the gradients there:
their second moments are to a row what those of the inputs are to a row of a linear layer's weight, and how often the
row is looked up is a factor, which GPTQ does not see. All else is NNCF's GPTQ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from nncf.quantization.algorithms.weight_compression import gptq
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor
from nncf.tensor import functions as fns
from nncf.tensor.definitions import TensorDataType

from llmcompress.graph.model import parameter_name
from llmcompress.system.patching import replaced


@contextlib.contextmanager
def embeddings_by_gptq(moments: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Have NNCF's GPTQ take embeddings as well.

    Args:
        moments: What ``embedding_moments`` gives, by the weights' names in the checkpoint.
    """
    stock = gptq.GPTQ.apply

    def apply(algorithm: Any, **given: Any) -> tuple[Any, dict[str, CompressedWeight]]:
        model, found = stock(algorithm, **given)
        backend, graph = given["backend_entity"], given["graph"]
        for target in given["weight_compression_parameters"]:
            hessian = moments.get(parameter_name(target.weight_name))
            if hessian is None:
                continue
            place = (target.node_with_weight, target.weight_port_id, model, graph)
            weight = fns.astype(backend.get_weight(*place), TensorDataType.float32)
            values, scale, zero_point = embedding_codes(algorithm, target, hessian, weight)
            backend.set_weight(*place, values)
            found[target.weight_name] = CompressedWeight(None, scale, zero_point, None)
        return model, found

    with replaced(gptq.GPTQ, "apply", apply):
        yield


def embedding_codes(
    algorithm: Any, target: Any, hessian: np.ndarray, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the codes of an embedding stand for, its scales and its zero points.

    Args:
        algorithm: NNCF's, set up.
        target: NNCF's parameters of the weight, with the format that it takes.
        hessian: float32 ``[num_columns, num_columns]``.
        weight: float32 ``[num_rows, num_columns]``; overwritten.
    """
    # To NNCF's GPTQ a table looks like a layer's weight, whose rows are output channels.
    attributes = SimpleNamespace(constant_attributes={target.weight_port_id: {"transpose": True}})
    table = SimpleNamespace(
        weight_name=target.weight_name,
        node_with_weight=SimpleNamespace(metatype=target.node_with_weight.metatype, layer_attributes=attributes),
        weight_port_id=target.weight_port_id,
        compression_config=target.compression_config,
        reduction_axes=(1,),
    )
    # Scales cannot be estimated: there are no inputs.
    with replaced(algorithm, "_scale_estimation", False):
        values, scale, zero_point = algorithm._quantize_weights(table, Tensor(hessian.copy()), weight, [])
    return values, scale, zero_point
