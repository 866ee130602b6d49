"""What happened, as data: the records that the verbs return and the files in an output directory hold."""

from llmcompress.report.compression import CalibrationRecord, CompressionReport, LayerRecord
from llmcompress.report.evaluation import (
    Check,
    ConversionRecord,
    DamagePart,
    DivergenceRecord,
    Estimate,
    EvalReport,
    GateRecord,
    GenerationRecord,
    ModelRecord,
    NoiseFloor,
    PerplexityRecord,
    TaskScore,
    TextRecord,
    Verdict,
)
from llmcompress.report.record import EnvironmentRecord, FileRecord, Measured, Provenance, Record, StageTime

__all__ = [
    "CalibrationRecord",
    "Check",
    "CompressionReport",
    "ConversionRecord",
    "DamagePart",
    "DivergenceRecord",
    "EnvironmentRecord",
    "Estimate",
    "EvalReport",
    "FileRecord",
    "GateRecord",
    "GenerationRecord",
    "LayerRecord",
    "Measured",
    "ModelRecord",
    "NoiseFloor",
    "PerplexityRecord",
    "Provenance",
    "Record",
    "StageTime",
    "TaskScore",
    "TextRecord",
    "Verdict",
]
