"""``OVModelForVisualCausalLM`` that carries out recipes: its parts are compressed in memory, and written once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from optimum.intel import OVModelForVisualCausalLM as StockModelForVisualCausalLM

from llmcompress.artifact import require_verified, staging, write_errors
from llmcompress.artifact.manifest import NOT_LISTED
from llmcompress.compression.compress import OutputOptions, compress_found
from llmcompress.errors import UsageError
from llmcompress.integrations.modeling import LoadingOptions, chosen_recipe, is_recipe, ours_over, refuse_positional
from llmcompress.loaders.environments import needed_layer, transformers_needed
from llmcompress.loaders.recommended import recommended_recipe
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.spec import Recipe
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.library_call import library_call


class OVModelForVisualCausalLM(StockModelForVisualCausalLM):  # type: ignore[misc]
    """Optimum's class, with recipes: ``from_pretrained(model_id, quantization_config="int4")``.

    With a recipe (a packaged name, a YAML file, a ``Recipe`` or an ``OVRecipeConfig``) the checkpoint becomes a
    complete directory as ``llmcompress.compress`` makes it, in a temporary place, and ``save_pretrained`` copies that.
    Without one, everything is Optimum's.
    """

    _made_in: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_pretrained(cls, model_id: str | Path, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """Return the model, compressed by a recipe; for anything else as the parent does.

        Args:
            model_id: A Hub id, or a checkpoint directory.
            args: The parent's, for calls without a recipe.
            quantization_config: As of ``llmcompress.OVModelForCausalLM``.
            kwargs: As there; all models have their cache inside.

        Raises:
            UsageError: An option of the parent's that a recipe leaves no room for, or the model is none that sees.
            RecipeError, ModelError, DataError, HubError, SecurityError, ResourceError: As ``llmcompress.compress``.
        """
        if not is_recipe(quantization_config):
            return super().from_pretrained(model_id, *args, quantization_config=quantization_config, **kwargs)
        refuse_positional(args)
        quiet_libraries()
        recipe, options = chosen_recipe(quantization_config), LoadingOptions(kwargs)
        found = resolve(model_id, options.access, vision=True)
        _require_opened_here(found, options)
        place = tempfile.TemporaryDirectory(prefix="llmcompress-")
        directory = Path(place.name) / "model"
        _compress(found, recipe or recommended_recipe(found, quantization_config), directory, options)
        opened = super().from_pretrained(
            str(directory), export=False, trust_remote_code=options.access.trust_remote_code, **options.instance
        )
        # Optimum chooses a class of its own for each model type; ours goes before it.
        opened.__class__ = ours_over(cls, type(opened))
        opened._made_in = place
        return opened

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write a model compressed by a recipe as one complete, verified directory; any other as the parent does.

        Raises:
            UsageError: The directory holds something else.
            WriteError, LockedError: It cannot be written.
        """
        if self._made_in is None:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        _copy(Path(self._made_in.name) / "model", save_directory)
        if push_to_hub:
            return self.push_to_hub(str(save_directory), **kwargs)
        return None


def _require_opened_here(found: Source, options: LoadingOptions) -> None:
    """Refuse what is not converted and opened by the classes of this process."""
    if not found.sees:
        raise UsageError(
            "it is a text model, which has no parts", where=found.name, hint="take llmcompress.OVModelForCausalLM"
        )
    if options.stateless:
        raise UsageError(
            "a vision-language model has its cache inside", where=found.name, hint="leave use_cache and stateful out"
        )
    if layer := needed_layer(found):
        raise UsageError(
            f"Optimum's class opens {found.config['model_type']!r} only with transformers{transformers_needed(found)}",
            where=found.name,
            hint=f"compress it with llmcompress.compress, and open the directory with transformers {layer.version}",
        )


@library_call
def _compress(found: Source, recipe: Recipe, directory: Path, options: LoadingOptions) -> None:
    compress_found(found, recipe, OutputOptions(directory, tokenizer=options.tokenizer), options.access)


@library_call
def _copy(directory: Path, target: str | Path) -> None:
    manifest = require_verified(directory)
    with staging(target, overwrite=True) as stage:
        with write_errors(stage.target):
            shutil.copytree(directory, stage.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_LISTED))
        stage.publish(manifest)
