"""Options that mean the same in every command."""

# Arguments are explained in the commands' texts: the help of `typer.Argument` is not shown with every version of click.
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer

from llmcompress.errors import UsageError

CommandT = TypeVar("CommandT", bound=Callable[..., None])

SOURCES = "Sources"
"""Panel of the options that say where models come from and what may be done with them."""
PRINTED = "Printed"

_of_sources = functools.partial(typer.Option, rich_help_panel=SOURCES)
_printed = functools.partial(typer.Option, rich_help_panel=PRINTED)

Source = Annotated[str, typer.Argument(metavar="SOURCE")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field; may be repeated.")
]
Revision = Annotated[str | None, _of_sources("--revision", help="Branch, tag or commit of a Hub source.")]
TrustRemoteCode = Annotated[
    bool, _of_sources("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
]


def place_of(source: str) -> str:
    """A source as another process finds it: a path made absolute, a Hub id as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source


Offline = Annotated[bool, _of_sources("--offline", help="Use only what is on this machine.")]
AllowNonfinite = Annotated[bool, _of_sources("--allow-nonfinite", help="Go on when weights hold NaN or infinity.")]
AllowLinks = Annotated[bool, _of_sources("--allow-links", help="Follow links that leave a model's directory.")]
ModelFile = Annotated[
    str | None,
    _of_sources("--file", metavar="NAME", help="The GGUF or ONNX file that is meant, where there are several."),
]


def places_of_file(file: str | None, places: Collection[str]) -> set[str]:
    """The sources that have a file of this name: directories with it, and Hub ids, which may.

    Raises:
        UsageError: None has.
    """
    if file is None:
        return set()
    folders = {place: Path(place) for place in places}
    found = {
        place
        for place, path in folders.items()
        if not path.exists() or (path / file).is_file() or (path / "onnx" / file).is_file()
    }
    if not found:
        raise UsageError(
            f"`file` has no effect: no source is a directory with {file!r}, or a Hub id", hint="leave it out"
        )
    return found


MergeAdapter = Annotated[
    bool, _of_sources("--merge-adapter", help="Merge a LoRA directory into the base model that it names.")
]
TextOnly = Annotated[
    bool, _of_sources("--text-only", help="Take the language model of a vision-language checkpoint alone.")
]
MaxContext = Annotated[
    int | None,
    _of_sources("--max-context", min=1, metavar="TOKENS", help="The model's context. Default: config.json's"),
]
ReferenceRevision = Annotated[str | None, _of_sources("--reference-revision", help="Revision of a Hub reference.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, in one step at the end.")]
BaseModelName = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="NAMESPACE/NAME",
        help="Hub id of the base, for the card. Default: the source's, or the one that its config.json names",
    ),
]
LicenseId = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="Of the model, for the card. Default: as the source's card states"),
]
Json = Annotated[bool, _printed("--json", help="Print the record as one JSON document, an error too.")]
Verbose = Annotated[
    bool, _printed("--verbose", "-v", help="Show stage durations, the libraries' logs and whole tracebacks.")
]


def in_panels(panels: Mapping[str, str]) -> Callable[[CommandT], CommandT]:
    """Show options of a command together in its help.

    Args:
        panels: What is shown together and in this order: names of parameters, with spaces between.
    """

    def decorate(command: CommandT) -> CommandT:
        found = inspect.signature(command, eval_str=True).parameters.items()
        by_name = {name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, parameter in found}
        take_options(command, put_into_panels(by_name, panels))
        return command

    return decorate


def put_into_panels(
    parameters: Mapping[str, inspect.Parameter], panels: Mapping[str, str]
) -> dict[str, inspect.Parameter]:
    """Return parameters with those of panels last, each with its panel."""
    placed = dict(parameters)
    for panel, names in panels.items():
        for name in names.split():
            parameter = placed.pop(name)
            kind, option = get_args(parameter.annotation)
            option = copy(option)
            option.rich_help_panel = panel
            placed[name] = parameter.replace(annotation=Annotated[kind, option])
    return placed


def take_options(command: Callable[..., None], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Have typer make options of these parameters, whatever the function's own are."""
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}


def check_choice(flag: str, value: str, accepted: Collection[str]) -> None:
    """Refuse a value that is not one of those.

    Raises:
        UsageError: Names the flag and what it accepts.
    """
    if value not in accepted:
        raise UsageError(f"got {value!r}; accepted: {', '.join(accepted)}", where=flag)


Address = Annotated[str | None, typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster.")]


def check_executor_options(executor: str, address: str | None) -> None:
    """Refuse an executor that there is not, and an address for one that has none.

    Raises:
        UsageError: Names the flag.
    """
    from llmcompress.system.executors import ExecutorName

    check_choice("--executor", executor, get_args(ExecutorName))
    if address is not None and executor != "ray":
        raise UsageError("--address has no effect on the executor local", hint="add --executor ray")


def chosen_format(output_format: str, accepted: Collection[str], *, as_json: bool) -> str:
    """Return how to print, as --format and --json together say.

    Raises:
        UsageError: There is no such format, or the two contradict each other.
    """
    check_choice("--format", output_format, accepted)
    if as_json and output_format not in {"table", "json"}:
        raise UsageError(f"--json and --format {output_format} contradict each other", hint="leave one of them out")
    return "json" if as_json else output_format


def refuse_ignored(context: typer.Context, mode: str, effective: set[str], hint: str) -> None:
    """Refuse options that were given and have no effect together with the option ``mode``; how to print always has one.

    Raises:
        UsageError: Names them.
    """
    given = [
        f"`{name}`"
        for name in context.params
        if name not in effective | {"as_json", "verbose"} and context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]
    ]
    if given:
        raise UsageError(f"{', '.join(given)} would have no effect on {mode}", hint=hint)
