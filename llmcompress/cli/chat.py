"""`llmcompress chat`"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.console import is_quiet, print_json, print_text, stdout, tell, write_text
from llmcompress.cli.options import (
    Json,
    ModelFile,
    Offline,
    Revision,
    TrustRemoteCode,
    Verbose,
    in_panels,
    place_of,
    places_of_file,
)
from llmcompress.errors import UsageError

if TYPE_CHECKING:
    from llmcompress.cli.chat_model import Answer, Talk

# Two columns of an answer each are readable from here on.
_TWO_COLUMNS = 100
_HELP = "/reset forgets the conversation, /help shows this, /quit or Ctrl-D ends; Ctrl-C stops an answer."


_PANELS = {"Conversation": "other other_revision prompt image system", "Answers": "max_new_tokens seed device"}


@in_panels(_PANELS)
def chat(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    other: Annotated[
        str | None, typer.Option("--with", metavar="SOURCE", help="Let this model answer next to it.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once, and end.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Show it with the first question; may be repeated.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system's message.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=1,
            metavar="TOKENS",
            help="At most this long. Default: as generation_config.json says, else 512",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Of the sampling, where the model samples.")
    ] = 0,
    device: Annotated[str, typer.Option("--device", "-d", help="OpenVINO device.")] = "CPU",
    revision: Revision = None,
    other_revision: Annotated[
        str | None, typer.Option("--with-revision", help="Revision of a Hub model of --with.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    file: ModelFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """SOURCE is an OpenVINO directory, a checkpoint directory, a GGUF or ONNX file, or a Hub id.
    A checkpoint is converted once, without compression; what is quantized already keeps its codes.
    Answers come through OpenVINO GenAI where it is installed, sampled as generation_config.json says.

    [bold]Examples[/bold]
    llmcompress chat model-int4-ov
    llmcompress chat model-int4-ov --with ORIGINAL
    llmcompress chat model-int4-ov -p "What is the capital of France?"
    llmcompress chat vision-model-int4-ov --image picture.png
    """  # fmt: skip
    from llmcompress.cli.chat_model import TalkSpec, open_model
    from llmcompress.graph.device import check_device

    if as_json and prompt is None:
        raise UsageError("`as_json` prints the answer to one prompt", hint="give -p PROMPT")
    if other_revision is not None and other is None:
        raise UsageError("`other_revision` would have no effect without `other`", hint="leave it out")
    check_device(device)
    access = {"trust_remote_code": trust_remote_code, "offline": offline}
    places = [(source, revision), *([(other, other_revision)] if other is not None else [])]
    with_file = places_of_file(file, [place for place, _ in places])
    directories = [
        _directory(place, at, {**access, "file": file if place in with_file else None}, verbose=verbose)
        for place, at in places
    ]
    spec = TalkSpec(device, max_new_tokens, seed, tuple(image or ()))
    talks = [open_model(directory, spec) for directory in directories]
    names = _names(directories)
    start = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        answers = _answers(talks, names, [[*start, {"role": "user", "content": prompt}]] * len(talks), quiet=as_json)
        if as_json:
            print_json([answer.model_dump(mode="json") for answer in answers])
        return
    _converse(talks, names, start)


def _directory(place: str, revision: str | None, access: dict[str, Any], *, verbose: bool) -> Path:
    """An OpenVINO directory of a source; a checkpoint's is made in a process of its own."""
    from llmcompress.cli.progress import run_watched
    from llmcompress.compression.compress import reference_ir
    from llmcompress.loaders.fetching import fetch_weights
    from llmcompress.loaders.resolving import resolve
    from llmcompress.spec import Access

    revision = None if Path(place).exists() else revision
    request = {"source": place_of(place), "revision": revision, "vision": True, **access}
    made = run_watched(reference_ir, request, verbose=verbose)
    if Path(made).is_dir():
        return Path(made)
    return fetch_weights(resolve(made, Access(revision, **access), vision=True)).path


def _names(directories: Sequence[Path]) -> list[str]:
    names = [directory.name for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


def _converse(talks: Sequence[Talk], names: Sequence[str], start: Sequence[dict[str, str]]) -> None:
    histories = [list(start) for _ in talks]
    if not is_quiet():
        tell(_HELP, style="dim")
    while (line := _asked()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            histories = [list(start) for _ in talks]
            tell("The conversation is forgotten.", style="dim")
        elif line.startswith("/"):
            tell(_HELP, style="dim")
        elif line:
            asked = [[*history, {"role": "user", "content": line}] for history in histories]
            answers = _answers(talks, names, asked)
            histories = [
                [*history, {"role": "assistant", "content": answer.text}]
                for history, answer in zip(asked, answers, strict=True)
            ]


def _asked() -> str | None:
    """The next line that was typed; None at the end of the input."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited and called back
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _answers(
    talks: Sequence[Talk],
    names: Sequence[str],
    conversations: Sequence[Sequence[dict[str, str]]],
    *,
    quiet: bool = False,
) -> list[Answer]:
    """Let each model answer, one after the other so that none slows the other, and show what it says as it says it."""
    if quiet:
        with _interrupts() as interrupted:
            return [
                talk(messages, lambda _: interrupted()) for talk, messages in zip(talks, conversations, strict=True)
            ]
    if len(talks) > 1 and sys.stdout.isatty() and stdout().width >= _TWO_COLUMNS:
        return _in_columns(talks, names, conversations)
    from rich.text import Text

    answers = []
    for talk, name, messages in zip(talks, names, conversations, strict=True):
        if len(talks) > 1:
            print_text(Text(f"{name}:", "bold"))
        answer = _aloud(talk, messages)
        if not is_quiet():
            tell(_speed(answer), style="dim")
        answers.append(answer)
    return answers


def _aloud(talk: Talk, messages: Sequence[dict[str, str]]) -> Answer:
    speak = speaker(stdout().width if sys.stdout.isatty() else None)
    with _interrupts() as interrupted:
        answer = talk(messages, lambda piece: speak(piece) or interrupted())
    speak("\n")
    return answer


def speaker(width: int | None) -> Callable[[str], bool]:
    """Return what writes an answer as it comes, and False.

    On a terminal of so many columns a word is written when it is whole, where it fits; the answer ends with a new line.
    """
    from rich.cells import cell_len

    column, begun = 0, ""

    def speak(piece: str) -> bool:
        nonlocal column, begun
        if width is None:
            write_text(piece)
        else:
            *parts, begun = re.split(r"(\s)", begun + piece)
            if cell_len(begun) > len(begun):
                # A script whose words have no spaces between: it is cut anywhere.
                parts, begun = [*parts, begun, ""], ""
            for word, space in zip(parts[::2], parts[1::2], strict=True):
                if column and column + cell_len(word) > width:
                    write_text("\n")
                    column = 0
                column += cell_len(word)
                # There is no room for a space behind the last column, nor need of one.
                write_text(word + (space if space == "\n" or column < width else ""))
                column = 0 if space == "\n" else column + (8 - column % 8 if space == "\t" else len(space))
        sys.stdout.flush()
        return False

    return speak


def _in_columns(
    talks: Sequence[Talk], names: Sequence[str], conversations: Sequence[Sequence[dict[str, str]]]
) -> list[Answer]:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts, speeds = ["" for _ in talks], ["" for _ in talks]

    def shown() -> Table:
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        for name in names:
            table.add_column(Text(name, "bold"), ratio=1, overflow="fold")
        table.add_row(*(Text(text.strip()) for text in texts))
        table.add_row(*(Text(speed, "dim") for speed in speeds))
        return table

    def hearing(column: int, live: Live, interrupted: Callable[[], bool]) -> Callable[[str], bool]:
        def heard(piece: str) -> bool:
            texts[column] += piece
            live.update(shown())
            return interrupted()

        return heard

    answers = []
    with Live(shown(), console=stdout(), transient=True) as live:
        for column, (talk, messages) in enumerate(zip(talks, conversations, strict=True)):
            with _interrupts() as interrupted:
                answers.append(talk(messages, hearing(column, live, interrupted)))
            speeds[column] = _speed(answers[-1])
            live.update(shown())
    # While it grows, what does not fit on the screen is cut; what stays is whole.
    stdout().print(shown())
    return answers


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C is only noted."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


def _speed(answer: Answer) -> str:
    tokens = f"{answer.num_tokens} token{'' if answer.num_tokens == 1 else 's'}"
    parts = [tokens, f"first after {answer.first_token_s * 1e3:,.0f} ms"]
    if answer.decode_tokens_per_s is not None:
        parts.append(f"then {answer.decode_tokens_per_s:.3g} tokens/s")
    if answer.ended != "stop":
        parts.append("cut at the limit" if answer.ended == "length" else "interrupted")
    return ", ".join(parts)
