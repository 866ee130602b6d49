"""What a training of weights came to: the curve, and what was kept of it."""

from __future__ import annotations

from llmcompress.report.record import CalibrationRecord, Record


class CurvePoint(Record):
    """A moment of the training."""

    step: int
    """Steps done before it."""
    loss: float | None = None
    """Mean over the steps since the last point; None at the start."""
    validation: float
    """Mean over the held-out windows, in the unit of the loss."""


class TrainingCurve(Record):
    """One training: of the whole model, or of one decoder layer."""

    name: str
    """``model``, or the layer's name in the checkpoint's class."""
    points: tuple[CurvePoint, ...]
    kept_step: int
    """Whose weights were written; 0: those of the start, since training did not beat it beyond noise."""
    gain: float
    """Validation of the start less that of the kept step; paired over windows."""
    gain_standard_error: float


class TrainingRecord(Record):
    """What learned bits were learned from, and how that went."""

    method: str
    """own_loop: trained by the user's own program, of which nothing is known here."""
    loss: str | None = None
    """kl_divergence, or output_error (mean squared, relative to the output's mean square)."""
    windows: CalibrationRecord | None = None
    """What was trained on."""
    validation: CalibrationRecord | None = None
    """The held-out windows: no sequence of 64 tokens in common with those trained on."""
    num_steps: int | None = None
    """Of each curve."""
    budget_s: float | None = None
    """The time that decided them."""
    num_layers: int | None = None
    """Weights whose bits were trained; None: floats were, before they were compressed."""
    changed_codes: float | None = None
    """Share of the trained weights' codes that differ from the start's; None likewise."""
    device: str | None = None
    products_in: str | None = None
    """Precision of the products in a step: f32 or bf16."""
    curves: tuple[TrainingCurve, ...] = ()

    @property
    def num_improved(self) -> int:
        """Curves whose weights were kept."""
        return sum(curve.kept_step > 0 for curve in self.curves)
