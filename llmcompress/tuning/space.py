"""What may be set on a device: only what its plugin lists, and only values that change what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmcompress.errors import UsageError, last_line
from llmcompress.graph.device import check_device, effective_properties
from llmcompress.graph.model import set_runtime_options
from llmcompress.report.compression import CompressionReport, integer_group_sizes
from llmcompress.spec import Runtime, TuneSpec
from llmcompress.spec.tuning import Scope
from llmcompress.spec.validation import did_you_mean

_NO_INTEGER_WEIGHTS = "the model has no integer weights, which alone meet quantized activations"
_SMALLEST_CACHE_GROUP = 16
_OF_ALL_VALUES = ("does not list it", "one kind of cores", "a model cannot hold it")
"""Reasons that a property is not tried at all."""


class Dimension(NamedTuple):
    """Settings of one kind, of which one is taken."""

    name: str
    values: tuple[dict[str, str], ...]


class Space(NamedTuple):
    """What to search, dimension by dimension, and what not."""

    dimensions: tuple[Dimension, ...]
    skipped: dict[str, str]
    given: bool
    """A person named the values: what the model refuses is an error then."""


class DeviceProperties:
    """What a plugin says of its properties, by compiling a model of one operation."""

    def __init__(self, name: str) -> None:
        import openvino as ov

        self.name = name
        try:
            listed = ov.Core().get_property(name, "SUPPORTED_PROPERTIES")
            self.full_name = str(ov.Core().get_property(name, "FULL_DEVICE_NAME"))
        except RuntimeError as error:
            raise UsageError(f"it cannot be asked for its properties: {last_line(error)}", where=name) from None
        self.writable = {key for key, access in listed.items() if access in ("RW", "WO")}

    def effective(self, properties: Mapping[str, str], options: Mapping[str, str] | None = None) -> dict[str, str]:
        """What the plugin makes of properties, and of a model's runtime options.

        Raises:
            ValueError: It refuses them; the reason.
        """
        import openvino as ov

        model = _one_operation()
        set_runtime_options(model, options or {})
        try:
            compiled = ov.Core().compile_model(model, self.name, dict(properties))
            return effective_properties(compiled, self.writable)
        except RuntimeError as error:
            raise ValueError(last_line(error)) from None

    def reads_from_model(self, name: str, value: str) -> bool:
        """Whether the plugin finds a property in a model's runtime options, where a recipe can put it."""
        if name.lower() not in Runtime.model_fields:
            return False
        try:
            return self.effective({}, {name: value}).get(name) == self.effective({name: value}).get(name)
        except ValueError:
            return False


def find_space(
    device: DeviceProperties,
    default: Mapping[str, str],
    manifest: CompressionReport,
    config: Mapping[str, Any],
    asked: Mapping[str, tuple[str, ...]],
    scope: Scope = "all",
) -> Space:
    """The settings to try on a model.

    Args:
        default: Effective properties of the model as it is.
        config: The model's ``config.json``.
        asked: Properties and values that a person named; they stand instead of the known ones.
        scope: Which properties to try.

    Raises:
        UsageError: A named property is unknown, or the device refuses a value.
    """
    check_asked(device, asked, scope)
    standing = {**device.effective({}), **default}
    skipped: dict[str, str] = {}
    dimensions = []
    named = ((name, [{name: value} for value in values]) for name, values in asked.items())
    for name, values in named if asked else _known(manifest, config):
        kept = []
        for value in values:
            problem = _problem(device, standing, value, scope)
            if problem:
                skipped[text_of(value)] = problem
            else:
                kept.append(value)
        dimensions.append(Dimension(name, tuple(kept)))
    if not asked and not any(layer.is_integer for layer in manifest.layers):
        dimensions = [each for each in dimensions if each.name != "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        skipped = {key: why for key, why in skipped.items() if "DYNAMIC_QUANTIZATION" not in key}
        skipped["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _NO_INTEGER_WEIGHTS
    return Space(tuple(each for each in dimensions if each.values), _summed_up(skipped), bool(asked))


def check_asked(device: DeviceProperties, asked: Mapping[str, tuple[str, ...]], scope: Scope) -> None:
    """Refuse, before anything slow, what a person named and the device does not take.

    Raises:
        UsageError: A property is unknown or cannot be held by a model as the scope asks, or a value is refused.
    """
    for name, values in asked.items():
        if name not in device.writable:
            raise UsageError(
                f"{device.name} has no property {name} that could be set",
                where="`properties`",
                hint=did_you_mean(name, device.writable) or f"it has {', '.join(sorted(device.writable))}",
            )
        for value in values:
            try:
                device.effective({name: value})
            except ValueError as error:
                raise UsageError(f"the device refuses {name}={value}: {error}", where="`properties`") from None
            if scope == "model" and not device.reads_from_model(name, value):
                raise UsageError(
                    f"{device.name} does not read {name}={value} from a model, and the scope is what a model can hold",
                    where="`properties`",
                    hint='leave it out, or take `scope="all"`',
                )


def check_properties(spec: TuneSpec) -> None:
    """As ``check_asked``, for what a spec names.

    Raises:
        UsageError: Its device is not there, or as ``check_asked``.
    """
    check_device(spec.device)
    check_asked(DeviceProperties(spec.device), spec.asked_values(), spec.scope)


def text_of(properties: Mapping[str, str]) -> str:
    """Properties in one line."""
    return ", ".join(f"{name}={value}" for name, value in sorted(properties.items())) or "default"


def _known(manifest: CompressionReport, config: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The properties that trade speed, memory and exactness, those with the largest effect first."""
    groups = integer_group_sizes(manifest.layers)
    hidden = config.get("hidden_size")
    # One scale for a whole token. The CPU plugin takes a group beyond a layer's width as none at all.
    whole = [hidden] if isinstance(hidden, int) and hidden > 0 else []
    # The weights' own first: a good one early, and what is slower is dropped after a few runs.
    likely = [*sorted(groups, reverse=True), *((64, 32, *whole) if groups else (*whole, 64, 32)), 0]
    sizes = [str(size) for size in dict.fromkeys(likely)]
    yield "DYNAMIC_QUANTIZATION_GROUP_SIZE", [{"DYNAMIC_QUANTIZATION_GROUP_SIZE": size} for size in sizes]
    yield "KV_CACHE_PRECISION", [{"KV_CACHE_PRECISION": each} for each in ("f16", "bf16", "u8", "u4")]
    halves = ("VALUE_CACHE_PRECISION", "KEY_CACHE_PRECISION")
    yield "VALUE_CACHE_PRECISION", [{"KV_CACHE_PRECISION": "u8", name: "u4"} for name in halves]
    # By default all channels of a head share a scale.
    parts = [(_head_size(config) or 0) / part for part in (2, 4)]
    sizes = [str(int(size)) for size in parts if size.is_integer() and size >= _SMALLEST_CACHE_GROUP]
    yield "KEY_CACHE_GROUP_SIZE", [{"KEY_CACHE_GROUP_SIZE": size, "VALUE_CACHE_GROUP_SIZE": size} for size in sizes]
    yield "INFERENCE_PRECISION_HINT", [{"INFERENCE_PRECISION_HINT": each} for each in ("bf16", "f16", "f32")]
    yield "INFERENCE_NUM_THREADS", [{"INFERENCE_NUM_THREADS": str(count)} for count in _thread_counts()]
    yield "SCHEDULING_CORE_TYPE", [{"SCHEDULING_CORE_TYPE": each} for each in ("ECORE_ONLY", "PCORE_ONLY")]
    for name in ("ENABLE_HYPER_THREADING", "ENABLE_CPU_PINNING"):
        yield name, [{name: "YES"}, {name: "NO"}]
    yield "PERFORMANCE_HINT", [{"PERFORMANCE_HINT": each} for each in ("LATENCY", "THROUGHPUT")]


def _problem(device: DeviceProperties, standing: Mapping[str, str], value: Mapping[str, str], scope: Scope) -> str:
    """Why a setting is not to be tried; nothing where it is."""
    unknown = [name for name in value if name not in device.writable]
    if unknown:
        return f"{device.name} does not list it"
    if scope == "model" and any(name.lower() not in Runtime.model_fields for name in value):
        return "a model cannot hold it"
    cores = "SCHEDULING_CORE_TYPE"
    if cores in value and device.effective({cores: "ECORE_ONLY"}).get(cores) != "ECORE_ONLY":
        return "this machine has one kind of cores"
    try:
        found = device.effective(value)
    except ValueError as error:
        return f"refused: {error}"
    # The precision of keys and of values follows that of the cache.
    names = {*value, *(("KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION") if "KV_CACHE_PRECISION" in value else ())}
    if all(found.get(name) == standing.get(name) for name in names):
        return "is what the model runs with by default"
    if scope == "model" and not all(device.reads_from_model(*each) for each in value.items()):
        return f"{device.name} does not read it from a model"
    return ""


def _summed_up(skipped: Mapping[str, str]) -> dict[str, str]:
    """A property whose values all have one reason is named once."""
    by_name: dict[str, dict[str, str]] = {}
    for text, why in skipped.items():
        by_name.setdefault(text.partition("=")[0], {})[text] = why
    found = {}
    for name, values in by_name.items():
        reasons = set(values.values())
        whole = len(reasons) == 1 and any(words in next(iter(reasons)) for words in _OF_ALL_VALUES)
        found.update({name: next(iter(reasons))} if whole else values)
    return found


def _head_size(config: Mapping[str, Any]) -> int | None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    size = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None)
    return size if isinstance(size, int) and size > 0 else None


def _thread_counts() -> list[int]:
    import psutil

    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    return sorted({logical, physical, max(1, physical // 2)})


def _one_operation() -> Any:
    from openvino import Model, PartialShape, Type
    from openvino import opset15 as ops

    given = ops.parameter(PartialShape([1, 1]), Type.f32)
    return Model([ops.result(ops.relu(given))], [given], "one operation")
