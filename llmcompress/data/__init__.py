"""Dataset name or file -> text -> token windows: the only tokenisation for calibration and evaluation."""

from llmcompress.data.calibration import CalibrationWindows, calibration_windows, of_windows, token_ids_sha256
from llmcompress.data.texts import read_texts, require_text

__all__ = ["CalibrationWindows", "calibration_windows", "of_windows", "read_texts", "require_text", "token_ids_sha256"]
