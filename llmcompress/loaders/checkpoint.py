"""Hugging Face checkpoint -> ``ov.Model``, in memory.

Optimum's exporter ends by saving the converted model. The model is taken there, before it is written: the constants
of the graph are still views of the mapped safetensors files where the model class uses its weights as they are.
This is the one place that depends on names inside optimum; where they have moved, the exporter's own staged IR
in ``scratch_dir`` is read back instead.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.artifact.failures import write_errors
from llmcompress.errors import ModelError
from llmcompress.graph.model import forget_conversion, keep_alive, memory_owners, read_ir
from llmcompress.loaders.adapter import Adapter, adapters_left_out, merge
from llmcompress.loaders.exporter import TASK
from llmcompress.loaders.language_model import language_model, load_whole
from llmcompress.loaders.tensor_names import refuse_other_tensors
from llmcompress.report.file_names import MODEL, MODEL_XML, part_of
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    import openvino as ov
    import torch


class _ModelTaken(BaseException):
    """Unwinds the exporter once the converted model is in hand; no ``except Exception`` may stop it."""


class Given(NamedTuple):
    """What a model is made of besides its directory."""

    adapter: Adapter | None = None
    """What is merged into it."""
    tensors: Mapping[str, torch.Tensor] | None = None
    """In place of those in files."""
    unneeded: Set[str] = frozenset()
    """Names of tensors that the model's class may drop."""
    after_load: Callable[[Any], None] | None = None
    """Called with the loaded model, before it is traced."""
    whole: Path | None = None
    """The vision-language checkpoint whose language model it is."""


def convert_checkpoint(
    directory: Path, scratch_dir: Path, *, trust_remote_code: bool = False, given: Given | None = None
) -> ov.Model:
    """As ``convert_parts``, of a model that has one part."""
    return convert_parts(directory, scratch_dir, trust_remote_code=trust_remote_code, given=given)[MODEL]


def convert_parts(
    directory: Path,
    scratch_dir: Path,
    *,
    task: str = TASK,
    trust_remote_code: bool = False,
    given: Given | None = None,
) -> dict[str, ov.Model]:
    """Load and convert a checkpoint; what generates is stateful, with its key-value cache inside the graph.

    Args:
        directory: Holds ``config.json`` and safetensors files, already validated.
        scratch_dir: Existing directory that receives the configuration files optimum writes.
        task: What it is exported for, which decides its parts.
        trust_remote_code: Run the Python code that the checkpoint brings.
        given: What the model is made of besides.

    Returns:
        The model's graphs with the checkpoint's own precision (bf16, fp16 or fp32 constants), by the names of their
        files: ``model`` is the only one of a text model.

    Raises:
        ModelError: The weights do not fit the architecture, or the exporter refuses it.
        WriteError: ``scratch_dir`` cannot be written.
    """
    from optimum.exporters.openvino.__main__ import main_export
    from optimum.exporters.openvino.utils import clear_class_registry
    from optimum.intel.openvino.configuration import OVConfig

    taken: dict[str, ov.Model] = {}
    storages: list[object] = []
    try:
        with _instrumented_exporter(given or Given(), task, taken, storages), adapters_left_out():
            main_export(
                model_name_or_path=str(directory),
                output=scratch_dir,
                task=task,
                library_name="transformers",
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                stateful=True,
                # A configuration without quantization keeps optimum from choosing int8 by the model's size.
                ov_config=OVConfig(dtype="auto"),
                model_loading_kwargs={"use_safetensors": True},
            )
    except _ModelTaken as signal:
        signal.__traceback__ = None
    except (ValueError, RuntimeError, KeyError, NotImplementedError, ImportError, OSError) as error:
        if isinstance(error, OSError) and scratch_dir in Path(str(error.filename)).parents:
            with write_errors(scratch_dir):
                raise
        raise _refusal(error, directory.name) from error
    finally:
        clear_class_registry()
        # The torch module and the traced graph are large; they go before compression begins.
        gc.collect()
    return _finished(taken, storages) if taken else _staged(scratch_dir)


def _refusal(error: Exception, name: str) -> ModelError:
    return ModelError(
        f"optimum's exporter could not convert this checkpoint: {_first_line(error)}",
        where=name,
        hint="run with -v for its full output; `llmcompress doctor` compares the installed versions",
    )


def _finished(taken: dict[str, ov.Model], storages: list[object]) -> dict[str, ov.Model]:
    for model in taken.values():
        # A bf16 constant does not own the memory it shows: without the torch storages it would dangle.
        keep_alive(model, storages)
        forget_conversion(model)
    # Like saving, a copy leaves out the nodes that no result needs; NNCF would follow constants to them.
    return {name: clone_model(taken.pop(name)) for name in list(taken)}


def _staged(directory: Path) -> dict[str, ov.Model]:
    """What the exporter has written itself."""
    names = [part_of(path.stem) for path in directory.glob("openvino_*model.xml")]
    return {name: read_ir(directory, name) for name in names}


def clone_model(model: ov.Model) -> ov.Model:
    """Copy the graph; constants stay shared and their memory stays alive as long as the copy does."""
    copy = model.clone()
    keep_alive(copy, memory_owners(model))
    return copy


@contextlib.contextmanager
def _instrumented_exporter(
    given: Given, task: str, taken: dict[str, ov.Model], storages: list[object]
) -> Iterator[None]:
    """Replace names for the time of one export: optimum's loading of the model and its saves, and torch's tracing.

    Of what it has traced torch makes a second trace, to compare: a third of the time, and no part of the result.
    The exporter would also load the tokenizer and save it next to the model that is not saved; the processors of
    vision-language models tell it the sizes of pictures.
    """
    import torch
    from optimum.exporters.openvino import __main__ as exporter
    from optimum.exporters.openvino import convert, model_configs
    from optimum.exporters.tasks import TasksManager

    wanted = {MODEL}
    export_models: Any = getattr(convert, "export_models", None)

    def export_parts(*args: Any, output_names: Sequence[str] = (MODEL_XML,), **kwargs: Any) -> Any:
        wanted.clear()
        wanted.update(part_of(Path(name).stem) for name in output_names)
        return export_models(*args, output_names=output_names, **kwargs)

    def take(model: ov.Model, path: str | Path, *args: Any, **kwargs: Any) -> None:
        taken[part_of(Path(path).stem)] = model
        if wanted <= taken.keys():
            raise _ModelTaken

    model_class_for_task = TasksManager.get_model_class_for_task

    def strict_model_class(*args: Any, **kwargs: Any) -> Any:
        return _StrictLoader(model_class_for_task(*args, **kwargs), given, storages)

    with contextlib.ExitStack() as stack:
        if hasattr(convert, "save_model") and export_models is not None:
            stack.enter_context(replaced(convert, "save_model", take))
            stack.enter_context(replaced(convert, "export_models", export_parts))
        # A Phi-3-vision names another repository, whose code the exporter would run unasked.
        stack.enter_context(replaced(model_configs, "AutoConfig", SimpleNamespace(from_pretrained=_encoder_of_phi3_v)))
        if task == TASK and hasattr(exporter, "load_preprocessors"):
            stack.enter_context(replaced(exporter, "load_preprocessors", lambda *args, **kwargs: []))
        stack.enter_context(replaced(torch.jit, "trace", functools.partial(torch.jit.trace, check_trace=False)))
        stack.enter_context(replaced(TasksManager, "get_model_class_for_task", staticmethod(strict_model_class)))
        yield


def _encoder_of_phi3_v(name: str, **kwargs: Any) -> Any:
    """The configuration of the encoder that all published ones have, CLIP's large one for 336 pixels a side."""
    from transformers import CLIPConfig

    return CLIPConfig(vision_config={"image_size": 336, "patch_size": 14})


class _StrictLoader:
    """Stands in for a transformers model class: ``from_pretrained`` that refuses what it would fill or drop."""

    def __init__(self, model_class: Any, given: Given, storages: list[object]) -> None:
        self._model_class = model_class
        self._given = given
        self._storages = storages

    def from_pretrained(self, directory: str, **kwargs: Any) -> Any:
        where = (self._given.whole or Path(directory)).name
        try:
            if self._given.whole is not None:
                model, info = load_whole(self._given.whole, **kwargs)
            elif self._given.tensors is None:
                model, info = self._model_class.from_pretrained(directory, output_loading_info=True, **kwargs)
            else:
                model, info = self._from_tensors(directory, self._given.tensors, **kwargs)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"transformers could not load the weights: {_first_line(error)}",
                where=where,
                hint="the tensors' names and shapes must be those that config.json describes",
            ) from error
        refuse_other_tensors(info, type(model).__name__, where, self._given.unneeded)
        if self._given.whole is not None:
            model = language_model(model, where)
        if self._given.adapter is not None:
            model = merge(model, self._given.adapter)
        if self._given.after_load is not None:
            self._given.after_load(model)
        self._storages += [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        return model

    def _from_tensors(self, directory: str, tensors: Mapping[str, torch.Tensor], **kwargs: Any) -> Any:
        from transformers import AutoConfig

        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(directory, local_files_only=True)
        # The exporter names it as the automatic classes take it; of them none takes tensors without files.
        if "_attn_implementation" in kwargs:
            kwargs["attn_implementation"] = kwargs.pop("_attn_implementation")
        mapping = getattr(self._model_class, "_model_mapping", None)
        model_class = self._model_class if mapping is None else mapping[type(config)]
        return model_class.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, **kwargs
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
