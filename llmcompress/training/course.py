"""One training from its start to what is kept of it: steps, validations, the best state, and how to go on later.

Both methods go through it: of the whole model by ``distillation``, of one decoder layer after another by ``blocks``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch

from llmcompress.report.training import CurvePoint, TrainingCurve
from llmcompress.spec.training import Training
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.files import replacing
from llmcompress.system.memory import forget_file_pages
from llmcompress.system.progress import Progress, Reporter
from llmcompress.system.sealed import Sealing, is_sealed
from llmcompress.training.student import Learnable

SAVE_EVERY_S = 60.0
LEAST_RATE = 0.02
"""Of the learning rates, at the last step."""
NOISE = 2.0
"""Standard errors that the gain on held-out windows must exceed."""
BETAS = (0.9, 0.95)
MEASURED_STEPS = 4
"""At most, by which the time of a step is measured."""


class Course(NamedTuple):
    """What is trained, by what, and where its state is kept."""

    name: str
    learnables: Sequence[Learnable]
    training: Training
    num_windows: int
    backward: Callable[[slice], float]
    """Adds the gradient of the mean loss over some windows; returns that loss."""
    validate: Callable[[], torch.Tensor]
    """The loss of each held-out window."""
    state_file: Path
    progress: Reporter


class _State(NamedTuple):
    """All that a training needs to go on."""

    step: int
    """Steps done."""
    parameters: Sequence[torch.Tensor]
    optimizer: dict[str, Any]
    points: list[CurvePoint]
    first: torch.Tensor
    """Validation of each window at the start."""
    best: torch.Tensor
    """The same at the best step so far."""
    best_step: int
    best_parameters: list[torch.Tensor]
    """In a file where there is room for one: they are read again when the training ends."""
    losses: list[float]
    """Since the last point."""


def run(course: Course) -> TrainingCurve:
    """Train, validate now and then, and leave the best state in the modules; the start where nothing beats it.

    After an interruption the same call goes on from the last state that was kept, and ends in the same numbers.
    """
    training, parameters = course.training, [learnable.parameter for learnable in course.learnables]
    optimizer = _optimizer(course.learnables, training)
    state = _restored(course, parameters, optimizer) or _begun(course, parameters, optimizer)
    points, best, best_step = state.points, state.best, state.best_step
    best_parameters, losses, step = state.best_parameters, state.losses, state.step
    interval = max(1, math.ceil(training.num_steps / training.num_validations))
    is_early = step - best_step >= training.patience * interval
    saved_at, is_whole = time.monotonic(), True

    def current() -> _State:
        return _State(
            step, parameters, optimizer.state_dict(), points, state.first, best, best_step, best_parameters, losses
        )

    try:
        while step < training.num_steps and not is_early:
            _tell(course, step, points)
            loss = _gradient(course, optimizer, step)
            is_whole = False
            optimizer.step()
            losses.append(loss)
            step += 1
            if step % interval == 0 or step == training.num_steps:
                found = course.validate()
                points.append(CurvePoint(step=step, loss=sum(losses) / len(losses), validation=float(found.mean())))
                losses.clear()
                if found.mean() < best.mean():
                    best, best_step = found, step
                    _copy(parameters, best_parameters)
                is_early = step - best_step >= training.patience * interval
            is_whole = True
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _save(course, current())
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        if is_whole:
            _save(course, current())
        raise
    _save(course, current()._replace(optimizer={}))
    _tell(course, step, points)
    gain, error = _gain(state.first, best)
    kept = best_step if gain > NOISE * error else 0
    if kept:
        with torch.no_grad():
            for parameter, value in zip(parameters, best_parameters, strict=True):
                parameter.copy_(value)
    else:
        put_back(course.learnables)
    return TrainingCurve(name=course.name, points=tuple(points), kept_step=kept, gain=gain, gain_standard_error=error)


def durations_s(course: Course, deadline: float) -> tuple[float, float]:
    """Seconds of a step and of a validation, by some whose outcome is of no use: ``put_back`` before
    the modules are used again.

    Args:
        course: Of which everything but its numbers of steps counts.
        deadline: By ``time.monotonic``; the first step is done even after it, and warms up where there are more.
    """
    optimizer, took = _optimizer(course.learnables, course.training), []
    started = time.monotonic()
    course.validate()
    validation_s = time.monotonic() - started
    for step in range(MEASURED_STEPS):
        started = time.monotonic()
        _gradient(course, optimizer, step)
        optimizer.step()
        took.append(time.monotonic() - started)
        if time.monotonic() > deadline:
            break
    later = took[1:] or took
    return sum(later) / len(later), validation_s


@torch.no_grad()
def put_back(learnables: Sequence[Learnable]) -> None:
    """Make the parameters what they were at the start."""
    for learnable in learnables:
        learnable.parameter.copy_(learnable.first())


def _optimizer(learnables: Sequence[Learnable], training: Training) -> torch.optim.Optimizer:
    rates = {
        "scale": training.rate("scale_learning_rate"),
        "zero_point": training.rate("zero_point_learning_rate"),
        "offset": training.rate("learning_rate"),
        "adapter": training.rate("adapter_learning_rate"),
        "weight": training.rate("weight_learning_rate"),
    }
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for kind, rate in rates.items():
        for learnable in (learnable for learnable in learnables if learnable.kind == kind):
            groups.setdefault(rate * learnable.unit, []).append(learnable.parameter)
    return torch.optim.Adam(
        [{"params": members, "lr": rate, "first_rate": rate} for rate, members in groups.items()], betas=BETAS
    )


def _gradient(course: Course, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Set the learning rates of a step and the gradient; returns the loss."""
    training = course.training
    factor = max(LEAST_RATE, 1 - step / training.num_steps)
    if training.num_warmup_steps:
        factor *= min(1.0, (step + 1) / training.num_warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["first_rate"] * factor
    batch = min(training.batch_size, course.num_windows)
    start = step * batch % (course.num_windows - batch + 1)
    optimizer.zero_grad(set_to_none=True)
    return course.backward(slice(start, start + batch))


def _tell(course: Course, step: int, points: Sequence[CurvePoint]) -> None:
    unit = f"steps, {points[-1].validation:.3g} held out"
    course.progress(Progress(f"train {course.name}", step, course.training.num_steps, unit))


def _begun(course: Course, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> _State:
    first = course.validate()
    points = [CurvePoint(step=0, validation=float(first.mean()))]
    best_parameters = _places(course, parameters)
    _copy(parameters, best_parameters)
    return _State(0, list(parameters), optimizer.state_dict(), points, first, first, 0, best_parameters, [])


def _restored(
    course: Course, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> _State | None:
    if not is_sealed(course.state_file):
        return None  # There is none, or it is damaged.
    device = parameters[0].device
    state = torch.load(course.state_file, map_location=device, weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    if state["optimizer"]:  # A finished training keeps none.
        optimizer.load_state_dict(state["optimizer"])
    points, best_parameters = [CurvePoint(**point) for point in state["points"]], _places(course, parameters)
    _copy(state["best_parameters"], best_parameters)
    return _State(**{**state, "parameters": list(parameters), "points": points, "best_parameters": best_parameters})


def _save(course: Course, state: _State) -> None:
    """Keep the state by one rename; a disk that refuses it stops no training."""
    plain = {**state._asdict(), "points": [point.model_dump() for point in state.points]}
    plain["parameters"] = [parameter.detach() for parameter in state.parameters]
    try:
        course.state_file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(course.state_file, durable=False) as file:
            sealing = Sealing(file)
            torch.save(plain, cast(IO[bytes], sealing))
            sealing.seal()
    except (OSError, RuntimeError):
        return
    finally:
        _forget(state.best_parameters)


def _places(course: Course, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Room for copies of parameters: in a file, or where there is none, in memory."""
    try:
        course.state_file.parent.mkdir(parents=True, exist_ok=True)
        memory = FileMemory(course.state_file.parent)
    except OSError:
        return [torch.empty_like(parameter, device="cpu") for parameter in parameters]
    blocks = [memory.block(parameter.nbytes) for parameter in parameters]
    return [
        torch.empty_like(parameter, device="cpu")
        if block is None
        else torch.from_numpy(block).view(parameter.dtype).reshape(parameter.shape)
        for parameter, block in zip(parameters, blocks, strict=True)
    ]


def _copy(parameters: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> None:
    for parameter, place in zip(parameters, places, strict=True):
        place.copy_(parameter.detach())
    _forget(places)


def _forget(places: Sequence[torch.Tensor]) -> None:
    """Let go of what is in a file."""
    for place in places:
        forget_file_pages(place.data_ptr(), place.nbytes)


def _gain(first: torch.Tensor, best: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error of what each held-out window gained."""
    gains = (first - best).double()
    error = float(gains.std() / math.sqrt(len(gains))) if len(gains) > 1 else math.inf
    return float(gains.mean()), error
