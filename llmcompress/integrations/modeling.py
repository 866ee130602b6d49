"""``OVModelForCausalLM`` that carries out recipes: in memory, without a full-precision IR on the way."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from optimum.intel import OVModelForCausalLM as StockModelForCausalLM
from transformers import AutoConfig, GenerationConfig

from llmcompress.artifact import staging
from llmcompress.compression.output import inputs, write
from llmcompress.compression.preparation import CompressOptions
from llmcompress.compression.run import CompressedModel, compress_in_memory
from llmcompress.errors import UsageError
from llmcompress.graph.model import nncf_records
from llmcompress.integrations.quantization_config import OVRecipeConfig
from llmcompress.loaders.environments import needed_layer, transformers_needed
from llmcompress.loaders.generation import save_generation_config
from llmcompress.loaders.recommended import recommended_recipe
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.file_names import MODEL_XML
from llmcompress.report.record import Stages
from llmcompress.spec import RECOMMENDED, Recipe, load_recipe
from llmcompress.spec.access import Access
from llmcompress.spec.optimum import recipe_from_quantization_config
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.json_file import write_json
from llmcompress.system.library_call import library_call

_log = logging.getLogger(__name__)

_BOOKKEEPING = {"_name_or_path", "name_or_path", "transformers_version", "_from_model_config", "_commit_hash"}

_FOR_THE_INSTANCE = frozenset({"device", "dynamic_shapes", "ov_config", "compile", "generation_config"})
_ELSEWHERE: Mapping[str, tuple[tuple[object, ...], str]] = {
    "token": ((None, True), "log in, or set HF_TOKEN: recipes take the token from there only"),
    "cache_dir": ((None,), "set HF_HUB_CACHE instead"),
    "force_download": ((False,), "remove it: files in the cache are checked, and fetched again where they are wrong"),
    "subfolder": (("",), "give the directory that holds config.json"),
    "load_in_8bit": ((None, False), "take the recipe int8"),
    "torch_dtype": ((None, "auto"), "remove it: recipes start from the checkpoint's own precision"),
    "task": ((None, "text-generation", "text-generation-with-past", "image-text-to-text"), "remove it"),
    "compile_only": ((False,), "compress first, and open the saved directory with compile_only=True"),
    "variant": ((None,), "give a directory with the files of that variant"),
    "from_onnx": ((False,), "give the original checkpoint"),
    "file_name": ((None,), "give the directory that holds openvino_model.xml"),
    "preprocessors": ((None, []), "remove it: save_pretrained writes the model's own tokenizer"),
}
"""Options of the parent that a recipe leaves no room for: what is accepted, and what to do instead."""


class OVModelForCausalLM(StockModelForCausalLM):  # type: ignore[misc]
    """Optimum's class, with recipes: ``from_pretrained(model_id, quantization_config="int4")``.

    With a recipe (a packaged name, a YAML file, a ``Recipe`` or an ``OVRecipeConfig``) the checkpoint is checked,
    converted and compressed in memory, exactly as ``llmcompress.compress`` does it, and ``save_pretrained`` writes what
    that writes: the model with its tokenizer, the tokenizer's conversion, and the manifest. Without one, everything is
    Optimum's.
    """

    _made: _Made | None = None

    @classmethod
    def from_pretrained(cls, model_id: str | Path, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """Return the model, compressed by a recipe; for anything else as the parent does.

        Args:
            model_id: A Hub id, a checkpoint directory, or a directory with an uncompressed OpenVINO IR.
            args: The parent's, for calls without a recipe.
            quantization_config: A recipe's name, a YAML file, a ``Recipe``, an ``OVRecipeConfig``, ``optimum-default``,
                or any configuration of Optimum's.
            kwargs: The parent's; ``export`` is not needed. ``use_cache=False`` and ``stateful=False`` take Optimum's
                own path, which gets the recipe as a configuration. With a recipe also those of
                ``llmcompress.compress``: ``tokenizer=False`` for a model without one, ``allow_nonfinite=True``.

        Raises:
            UsageError: an option of the parent's that a recipe leaves no room for.
            RecipeError, ModelError, DataError, HubError, SecurityError, ResourceError: as ``llmcompress.compress``.
        """
        if not is_recipe(quantization_config):
            return super().from_pretrained(model_id, *args, quantization_config=quantization_config, **kwargs)
        refuse_positional(args)
        quiet_libraries()
        recipe = chosen_recipe(quantization_config)
        options = LoadingOptions(kwargs)
        found = resolve(model_id, options.access)
        recipe = recipe or recommended_recipe(found, quantization_config)
        if not options.stateless:
            return _in_memory(cls, found, str(model_id), recipe, options)
        if layer := needed_layer(found):
            raise UsageError(
                f"without a cache inside it is converted by Optimum's own path, which takes "
                f"{found.config['model_type']!r} only with transformers{transformers_needed(found)}",
                where=str(model_id),
                hint=f"leave use_cache and stateful out, or do it with transformers {layer.version}",
            )
        if found.layout == "ir":
            problem = "an OpenVINO model with its cache inside cannot be opened without it"
            raise UsageError(problem, where=str(model_id), hint="give the original checkpoint")
        config = OVRecipeConfig.from_recipe(
            recipe,
            revision=options.access.revision,
            trust_remote_code=options.access.trust_remote_code,
            offline=options.access.offline,
        )
        return super().from_pretrained(model_id, quantization_config=config, **{**kwargs, "export": True})

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write a model compressed by a recipe as one complete, verified directory; any other as the parent does.

        An empty directory or an earlier artifact is replaced in one step; any other existing directory is refused. A
        model whose graph was changed after it was made is no longer what the recipe makes: it is saved as the parent
        does it, without a manifest.

        Raises:
            UsageError: the directory holds something else, or is an input of this model.
            ModelError: the tokenizer's conversion differs from the original.
            WriteError, LockedError: it cannot be written.
        """
        if self._made is None or not self._made.is_intact(self.model):
            if self._made is not None:
                _log.warning("the graph was changed after the recipe was carried out: saved without a manifest")
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        _save(self._made.as_it_is_now(self.config, self.generation_config), save_directory)
        if push_to_hub:
            return self.push_to_hub(str(save_directory), **kwargs)
        return None


@dataclass(frozen=True)
class _Made:
    """What a recipe made, and how the instance looked then: what its user changed since is told by the difference."""

    compressed: CompressedModel
    config: dict[str, Any]
    generation_config: dict[str, Any]
    records: dict[str, dict[str, Any]]

    def is_intact(self, model: Any) -> bool:
        """Whether the graph is still the one that was made, and nothing has been applied to it."""
        return model is self.compressed.model and nncf_records(model) == self.records

    def as_it_is_now(self, config: Any, generation_config: Any) -> CompressedModel:
        """What to write, with the settings that were changed."""
        loaded = self.compressed.loaded
        loaded = dataclasses.replace(
            loaded,
            config=_changed(loaded.config, self.config, config.to_dict()) or {},
            generation_config=_changed(loaded.generation_config, self.generation_config, generation_config.to_dict()),
        )
        return dataclasses.replace(self.compressed, loaded=loaded, stages=copy.deepcopy(self.compressed.stages))


def _changed(written: dict[str, Any] | None, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a file, with what differs now; as it was where nothing does."""
    names = {name for name in before.keys() | now.keys() if name not in _BOOKKEEPING}
    changed = {name: now.get(name) for name in names if before.get(name) != now.get(name)}
    if not changed:
        return written
    return {name: value for name, value in {**(written or {}), **changed}.items() if value is not None}


def refuse_positional(args: Sequence[object]) -> None:
    """Of ``from_pretrained`` with a recipe: which of them would be which is the parent's affair.

    Raises:
        UsageError: There are some.
    """
    if args:
        problem = f"{len(args)} positional arguments after the model"
        raise UsageError(problem, where="from_pretrained", hint="write them with their names")


def is_recipe(given: object) -> bool:
    """Whether a ``quantization_config`` is one of ours."""
    return isinstance(given, (str, Path, Recipe, OVRecipeConfig)) or (isinstance(given, Mapping) and "recipe" in given)


def chosen_recipe(given: Any) -> Recipe | None:
    """The recipe, or None for one that depends on the model."""
    if isinstance(given, (str, Path)):
        return None if given in RECOMMENDED else load_recipe(given)
    return given if isinstance(given, Recipe) else recipe_from_quantization_config(given)


@library_call
def _save(compressed: CompressedModel, directory: str | Path) -> None:
    with staging(directory, overwrite=True, inputs=inputs(compressed.loaded.source, compressed.recipe)) as stage:
        write(compressed, stage)


@library_call
def _in_memory(
    cls: type[OVModelForCausalLM], found: Source, model_id: str, recipe: Recipe, options: LoadingOptions
) -> OVModelForCausalLM:
    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="llmcompress-") as scratch:
        how = CompressOptions(Path(scratch), access=options.access, tokenizer=options.tokenizer)
        compressed = compress_in_memory(found, recipe, how, stages)
        stages.pause()
        loaded = compressed.loaded
        write_json(Path(scratch) / "config.json", loaded.config)
        save_generation_config(loaded.config, loaded.generation_config, compressed.tokenizer, Path(scratch))
        # Code of the model's own lies next to its configuration, not next to the exporter's.
        place = found.path if found.trust_remote_code else scratch
        own = AutoConfig.from_pretrained(place, trust_remote_code=found.trust_remote_code)
        own.name_or_path = model_id
        config = options.config if options.config is not None else own
        if isinstance(config, (str, os.PathLike)):
            config = AutoConfig.from_pretrained(config, trust_remote_code=found.trust_remote_code)
        opened = _opening(cls, compressed)._from_pretrained(Path(scratch), config, **options.instance)
        generation_config = GenerationConfig.from_pretrained(scratch)
    opened.model_save_dir = None
    # Optimum chooses a class of its own for some model types; ours goes before it.
    opened.__class__ = ours_over(cls, type(opened).__mro__[1] if isinstance(opened, cls) else type(opened))
    opened._made = _Made(
        compressed=compressed,
        config=own.to_dict(),
        generation_config=generation_config.to_dict(),
        records=nncf_records(compressed.model),
    )
    return cast(OVModelForCausalLM, opened)


def _opening(cls: type[OVModelForCausalLM], compressed: CompressedModel) -> Any:
    """A class whose ``_from_pretrained`` opens the model in memory where the parent reads a file."""

    class Opening(cls):  # type: ignore[misc, valid-type]
        @staticmethod
        def _cached_file(model_path: Path, **kwargs: Any) -> Path:
            return model_path / MODEL_XML

        @staticmethod
        def load_model(file_name: Path, **kwargs: Any) -> Any:
            return compressed.model

    return Opening


def ours_over(cls: type[Any], chosen: type) -> type:
    """A class of ours with the class that Optimum chose for a model behind it."""
    if issubclass(cls, chosen):
        return cls
    return type(cls.__name__, (cls, chosen), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class LoadingOptions:
    """The parent's options, sorted: where to find the model, and what the instance gets."""

    def __init__(self, kwargs: Mapping[str, Any]) -> None:
        """Sort the arguments of ``from_pretrained``.

        Raises:
            UsageError: One has no effect with a recipe.
        """
        given = dict(kwargs)
        self.access = Access(
            revision=given.pop("revision", None),
            trust_remote_code=bool(given.pop("trust_remote_code", False)),
            offline=bool(given.pop("local_files_only", False)),
            allow_nonfinite=bool(given.pop("allow_nonfinite", False)),
            allow_links=bool(given.pop("allow_links", False)),
            merge_adapter=bool(given.pop("merge_adapter", False)),
            max_context=given.pop("max_context", None),
            file=given.pop("file", None),
        )
        self.config = given.pop("config", None)
        self.tokenizer = bool(given.pop("tokenizer", True))
        given.pop("export", None)
        use_cache, stateful = given.pop("use_cache", True), given.pop("stateful", True)
        self.stateless = use_cache is False or stateful is False
        if self.stateless and (self.access.allow_nonfinite or not self.tokenizer):
            raise UsageError(
                "tokenizer and allow_nonfinite have no effect with use_cache=False, which is Optimum's own path",
                where="from_pretrained",
                hint="remove them",
            )
        if self.stateless:
            # Optimum's own path saves them.
            given.pop("preprocessors", None)
        self.instance = {name: given.pop(name) for name in _FOR_THE_INSTANCE & given.keys()}
        for name, value in given.items():
            accepted, instead = _ELSEWHERE.get(name, ((), "remove it"))
            if not any(value is one or value == one for one in accepted):
                raise UsageError(f"{name} has no effect together with a recipe", where="from_pretrained", hint=instead)
