"""OpenVINO IR directory -> ``ov.Model``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.errors import ModelError

if TYPE_CHECKING:
    import openvino as ov

MODEL_FILE = "openvino_model.xml"


def read_ir(directory: Path) -> ov.Model:
    """Read ``openvino_model.xml`` and map its ``.bin``.

    Raises:
        ModelError: The files are damaged or incomplete.
    """
    import openvino as ov

    try:
        return ov.Core().read_model(directory / MODEL_FILE)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"OpenVINO could not read the model: {reason}",
            where=f"{directory.name}/{MODEL_FILE}",
            hint="export or copy the directory again; `llmcompress verify` names damaged files of our own artifacts",
        ) from error
