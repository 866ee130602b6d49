"""LoRA adapters: found, checked, merged into their base model by peft, and kept from a model that is loaded alone."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError, ResourceError, SecurityError, UsageError, one_line
from llmcompress.loaders.safetensors_file import read_header
from llmcompress.system.json_file import read_json
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_FINDER = "find_adapter_config_file"
_EXTRA = "pip install 'llmcompress[adapters]'"

_log = logging.getLogger(__name__)


class Adapter(NamedTuple):
    """A LoRA that is to be merged into the model whose source holds it."""

    path: Path
    """The directory with its configuration; a Hub adapter's weights are in it only after ``fetch_weights``."""
    base: str
    """Hub id or directory of the model that it was trained on."""
    base_revision: str | None
    targets: tuple[str, ...] | None
    """Names of the modules that it changes, or the ends of such; None: others than by a list of names."""
    id: str | None = None
    """Hub id."""
    revision: str | None = None
    """The commit that a Hub adapter was resolved to."""
    files: HubListing | None = None
    """What the Hub lists at that commit."""

    @property
    def name(self) -> str:
        """For people: the Hub id, or the directory's name."""
        return self.id or self.path.name


def require_adapter(names: Collection[str], where: str) -> None:
    """Refuse to merge what is not there.

    Raises:
        UsageError: There is no adapter.
        SecurityError: Its weights are a pickle file.
        ModelError: It has no weights.
    """
    if ADAPTER_CONFIG not in names:
        raise UsageError(
            f"`merge_adapter` has no effect: there is no {ADAPTER_CONFIG}",
            where=where,
            hint="leave it out, or give the adapter's Hub id or directory",
        )
    if ADAPTER_WEIGHTS in names:
        return
    if _PICKLED in names:
        raise SecurityError(
            f"the adapter's weights are a pickle file ({_PICKLED}), which can run code when opened",
            where=where,
            hint="save it again where you trust it: peft's save_pretrained writes safetensors",
        )
    raise ModelError(
        f"there is {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}",
        where=where,
        hint="fetch the adapter again, with its weights",
    )


def read_adapter(path: Path, *, where: str) -> Adapter:
    """Read an adapter's configuration.

    Raises:
        ModelError: It is damaged, no LoRA, or names no base model.
    """
    config = read_json(path / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("megatron_config"):
        raise ModelError(
            f"it is an adapter of type {kind!r}; LORA is merged",
            where=where,
            hint="merge it where it was trained, and give the merged model",
        )
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base or not (revision is None or isinstance(revision, str)):
        raise ModelError(
            f"base_model_name_or_path is {base!r} at revision {revision!r}; a Hub id or a directory is needed",
            where=f"{where}: {ADAPTER_CONFIG}",
            hint="write the model that the adapter was trained on into this file",
        )
    targets = config.get("target_modules")
    names = tuple(map(str, targets)) if isinstance(targets, list) else None
    return Adapter(path, base, None if Path(base).exists() else revision, names)


def warn_of_adapter(names: Collection[str], where: str) -> None:
    """Warn of an adapter's files beside a whole model: transformers takes them where peft is installed."""
    if ADAPTER_WEIGHTS in names or _PICKLED in names:
        _log.warning("%s: the adapter beside the model is left out; `merge_adapter` merges it into the model", where)
    elif ADAPTER_CONFIG in names:
        _log.warning("%s: %s is left out: there are no weights of an adapter", where, ADAPTER_CONFIG)


def require_mergeable(adapter: Adapter, *, quantized: bool) -> None:
    """Refuse what merging would refuse, by headers where they are there.

    Raises:
        ResourceError: peft is not installed.
        ModelError: The base model is quantized, or the adapter's file is damaged or holds none.
    """
    if importlib.util.find_spec("peft") is None:
        raise ResourceError("to merge an adapter, peft must be installed", where=adapter.name, hint=_EXTRA)
    if quantized:
        raise ModelError(
            f"its base model {adapter.base} is quantized, and an adapter is merged into floating-point weights",
            where=adapter.name,
            hint=f"write the base model before quantization into base_model_name_or_path of {ADAPTER_CONFIG}",
        )
    if (adapter.path / ADAPTER_WEIGHTS).is_file() and not read_header(adapter.path / ADAPTER_WEIGHTS):
        raise ModelError(
            f"{ADAPTER_WEIGHTS} holds no tensor", where=adapter.name, hint="fetch or save the adapter again"
        )


@contextlib.contextmanager
def adapters_left_out() -> Iterator[None]:
    """Keep transformers from loading an adapter that lies beside a model, as it does where peft is installed."""
    from transformers import modeling_utils
    from transformers.integrations import peft
    from transformers.models.auto import auto_factory

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    with contextlib.ExitStack() as stack:
        # Which of them look for one depends on the version of transformers.
        for module in (auto_factory, modeling_utils, peft):
            if _FINDER in vars(module):
                stack.enter_context(replaced(module, _FINDER, nothing))
        yield


def merge(model: Any, adapter: Adapter) -> Any:
    """Merge an adapter into a loaded base model, as peft's ``merge_and_unload`` does.

    Raises:
        ModelError: It does not fit the model, holds values that are not finite, or peft cannot merge it.
    """
    from peft import LoraConfig, PeftModel

    hint = f"base_model_name_or_path in {ADAPTER_CONFIG} must name the model that the adapter was trained on"
    directory = str(adapter.path)
    try:
        with_adapter = PeftModel(model, LoraConfig.from_pretrained(directory))
        loaded = with_adapter.load_adapter(directory, "default", torch_device="cpu", use_safetensors=True)
        strangers = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if "lora_" in key)]
        own = {name: value for name, value in with_adapter.named_parameters() if "lora_" in name}
        infinite = [name for name, value in own.items() if not value.isfinite().all()]
        # In place: safetensors maps files privately, so that the base model's stay as they are.
        merged = with_adapter.merge_and_unload()
    except Exception as error:
        raise ModelError(
            f"peft could not merge it: {one_line(f'{type(error).__name__}: {error}', 300)}",
            where=adapter.name,
            hint=hint,
        ) from error
    if strangers:
        raise ModelError(
            f"{len(strangers)} of its tensors do not fit the base model: {strangers[0]}", where=adapter.name, hint=hint
        )
    if infinite:
        raise ModelError(
            f"{len(infinite)} of its tensors hold NaN or infinite values: {infinite[0]}",
            where=adapter.name,
            hint="the adapter is damaged or its training diverged; fetch or train it again",
        )
    return merged
