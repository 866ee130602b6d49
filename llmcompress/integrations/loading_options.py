"""Options of Optimum's ``from_pretrained``, as far as a recipe leaves room for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompress.errors import UsageError
from llmcompress.spec.access import Access

_FOR_THE_INSTANCE = frozenset({"device", "dynamic_shapes", "ov_config", "compile", "generation_config"})
_ELSEWHERE: Mapping[str, tuple[tuple[object, ...], str]] = {
    "token": ((None, True), "log in, or set HF_TOKEN: recipes take the token from there only"),
    "cache_dir": ((None,), "set HF_HUB_CACHE instead"),
    "force_download": ((False,), "remove it: files in the cache are checked, and fetched again where they are wrong"),
    "subfolder": (("",), "give the directory that holds config.json"),
    "load_in_8bit": ((None, False), "take the recipe int8"),
    "torch_dtype": ((None, "auto"), "remove it: recipes start from the checkpoint's own precision"),
    "task": ((None, "text-generation", "text-generation-with-past"), "remove it"),
    "compile_only": ((False,), "compress first, and open the saved directory with compile_only=True"),
    "variant": ((None,), "give a directory with the files of that variant"),
    "from_onnx": ((False,), "give the original checkpoint"),
    "file_name": ((None,), "give the directory that holds openvino_model.xml"),
    "preprocessors": ((None, []), "remove it: save_pretrained writes the model's own tokenizer"),
}
"""Options of the parent that a recipe leaves no room for: what is accepted, and what to do instead."""


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
