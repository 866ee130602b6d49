"""What each weight costs in time, from a table that is measured on this device.

The product of a token, or of a prompt's tokens, with a matrix is timed for each shape and format in turn, in a process
of its own; as many copies are multiplied in one call as the model has matrices of the shape, so that their bytes come
from where the model's do. What is known of this device and these versions is kept in the cache. Times of single
products add up; the rest of a model is what a whole one takes beyond them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.benchmarking.token_times import DEVICE, PREFILL
from llmcompress.compression.layers import constants_taken_by, layer_table
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.errors import ModelError
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.searching.candidates import REST, Candidate, Table, uniform
from llmcompress.spec.search import Format, Phase
from llmcompress.system.cache import cache_dir, content_key
from llmcompress.system.environment import cpu_name, installed_versions
from llmcompress.system.files import replace_file
from llmcompress.system.json_file import noted
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

KIND = "speeds"
"""Of entries in the cache."""
PROMPT_TOKENS = 128
"""That are multiplied at once for the time of a prompt token."""
MAX_BYTES = 64_000_000
"""In f32 of the matrices of one call: beyond the caches more of them change nothing."""
ROUNDS = 15
RUNS = 4
"""Of one product in each round, after one that is not counted; the least counts."""


class Product(NamedTuple):
    """What is timed."""

    num_rows: int
    num_columns: int
    num_copies: int
    """In one call."""
    format: Format
    """Data-free: who made the codes changes no time."""
    num_tokens: int
    activation_groups: int
    """Of which size the device quantizes activations, 0: its choice."""


def timed(table: Table, loaded: LoadedModel, phase: Phase, progress: Reporter) -> Table:
    """The table with what each candidate takes, in seconds a token.

    Args:
        table: Without times.
        loaded: The original.
        phase: Of new tokens, or of a prompt's.
        progress: Told of every round.

    Raises:
        ModelError: A weight is a stack of experts, of which a token takes a few.
    """
    shapes = _shapes(table, loaded)
    counts = Counter(shapes.values())
    met = [each.format.group_size for each in table.permitted if each.weight in shapes]
    groups = min((size for size in met if size > 0), default=0)
    heads = table.special - table.looked_up
    wanted: dict[tuple[str, Format], Product] = {}
    for each in table.candidates:
        if each.weight in shapes:
            rows, columns = shapes[each.weight]
            copies = min(counts[rows, columns], max(1, MAX_BYTES // (4 * rows * columns)))
            # The head is computed of a prompt's last token alone.
            tokens = PROMPT_TOKENS if phase == "prefill" and each.weight not in heads else 1
            plain = each.format._replace(method="data_free")
            wanted[each.weight, each.format] = Product(rows, columns, copies, plain, tokens, groups)
    seconds = product_times(list(dict.fromkeys(wanted.values())), progress)

    def with_time(candidate: Candidate) -> Candidate:
        product = wanted.get((candidate.weight, candidate.format))
        if product is None:
            return candidate
        share = PREFILL.prompt_tokens if phase == "prefill" and product.num_tokens == 1 else product.num_tokens
        return candidate._replace(seconds=seconds[product] / share)

    return table._replace(candidates=[with_time(each) for each in table.candidates])


def product_times(products: Sequence[Product], progress: Reporter) -> dict[Product, float]:
    """Seconds of one matrix with all tokens; what the cache does not hold is measured and put there."""
    known = {each: seconds for each in products if (seconds := _known(each)) is not None}
    missing = [each for each in products if each not in known]
    if missing:
        found = run_supervised(measure, {"products": missing}, progress=progress)
        for each, seconds in zip(missing, found, strict=True):
            _keep(each, seconds)
            known[each] = seconds
    return known


def measure(products: Sequence[Product], progress: Reporter) -> list[float]:
    """Time products in turn: of each the median over the rounds of the least of its runs, for one matrix."""
    import numpy as np

    requests = [_request(each) for each in products]
    seconds = np.empty((ROUNDS, len(products)))
    for number in range(ROUNDS):
        progress(Progress("time products", number, ROUNDS, "rounds"))
        # Who comes after whom changes, or the order itself would be measured.
        for place in np.random.default_rng(number).permutation(len(products)):
            seconds[number, place] = min(_run(requests[place]) for _ in range(1 + RUNS))
    progress(Progress("time products", ROUNDS, ROUNDS, "rounds"))
    medians = np.median(seconds, axis=0)
    return [float(value) / each.num_copies for value, each in zip(medians, products, strict=True)]


def _shapes(table: Table, loaded: LoadedModel) -> dict[str, tuple[int, int]]:
    """Rows and columns of what is multiplied, by name."""
    multiplied = {parameter_name(each) for each in constants_taken_by(loaded.model, "MatMul")}
    names = {each.weight for each in table.candidates} & {*multiplied, REST}
    shapes = {parameter_name(layer.name): layer.shape for layer in layer_table(loaded.model)}
    found = {}
    for name in sorted(names):
        if name == REST or len(shapes[name]) != 2:
            raise ModelError(
                "a token takes a few of its experts, whose time cannot be predicted from single products",
                where=name,
                hint="give `max_bytes`, `bits_per_weight` or `max_kl`, with objective size",
            )
        found[name] = (shapes[name][0], shapes[name][1])
    return found


def _request(product: Product) -> tuple[ov.InferRequest, NDArray[np.float32]]:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    given = ops.parameter([1, -1, product.num_columns], np.float32)
    matrices = [
        random.standard_normal((product.num_rows, product.num_columns), np.float32) for _ in range(product.num_copies)
    ]
    results = [ops.result(ops.matmul(given, ops.constant(each), False, True)) for each in matrices]
    model = ov.Model(results, [given])
    compress_weights(model, uniform(product.format, all_layers=True))
    groups = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(product.activation_groups)} if product.activation_groups else {}
    request = ov.Core().compile_model(model, DEVICE, groups).create_infer_request()
    rows = random.standard_normal((1, product.num_tokens, product.num_columns), np.float32)
    request.set_input_tensor(ov.Tensor(rows))
    return request, rows


def _run(request: tuple[ov.InferRequest, NDArray[np.float32]]) -> float:
    started = time.perf_counter()
    request[0].start_async()
    request[0].wait()
    return time.perf_counter() - started


def _known(product: Product) -> float | None:
    seconds = noted(_path(product)).get("seconds")
    return seconds if isinstance(seconds, float) and 0 < seconds < math.inf else None


def _keep(product: Product, seconds: float) -> None:
    with contextlib.suppress(OSError):
        _path(product).parent.mkdir(parents=True, exist_ok=True)
        replace_file(_path(product), json.dumps({"seconds": seconds}).encode(), durable=False)


def _path(product: Product) -> Path:
    key = {
        "product": {**product._asdict(), "format": str(product.format)},
        "device": [DEVICE, cpu_name(), os.cpu_count()],
        "versions": installed_versions(("openvino",)),
    }
    return cache_dir() / KIND / f"{content_key(key)}.json"
