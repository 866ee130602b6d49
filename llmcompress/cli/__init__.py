"""The command line: parse, call one function, print its report. One command, one file, its tables included."""

from __future__ import annotations

import codecs
import contextlib
import functools
import gc
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

COMPLETION = "_LLMCOMPRESS_COMPLETE"
"""The shell's script sets this variable to ask for completions."""
_BROKEN_PIPE_EXIT_CODE = 141


def main() -> None:
    """Run the command line and end the process with its exit code."""
    _replace_closed_streams()
    _escape_what_stdout_cannot_show()
    exit_code = run(sys.argv[1:])
    # Python would look through every object several times more before it ends, which takes a fifth of a second.
    gc.freeze()
    sys.exit(exit_code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code that the errors' tree in `llmcompress.errors` assigns."""
    from typer import Exit

    from llmcompress.cli.app import command, load_command
    from llmcompress.cli.console import own_volume
    from llmcompress.cli.flags import flags_of, own_flags, with_flags
    from llmcompress.cli.progress import warnings_shown
    from llmcompress.errors import LlmcompressError

    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    tell = functools.partial(_tell, as_json=_wants_json(arguments))
    try:
        # Not `main`, which has a way of its own with errors, Ctrl-C and closed pipes.
        root = command()
        if COMPLETION in os.environ:
            from typer.completion import shell_complete

            return shell_complete(root, {}, "llmcompress", COMPLETION, os.environ[COMPLETION])
        context = root.make_context("llmcompress", list(arguments) or ["--help"])
        with context, own_volume(), own_flags(), warnings_shown():
            root.invoke(context)
        return _end_of_output(0, tell)
    except Exit as end:
        return _end_of_output(end.exit_code, tell)
    except BrokenPipeError:
        # The reader of our stdout has seen enough; Python would complain once more while it exits.
        _silence_stdout()
        return _BROKEN_PIPE_EXIT_CODE
    except LlmcompressError as error:
        if verbose and hasattr(error, "__notes__"):
            sys.stderr.write("\n".join(error.__notes__) + "\n")
        flags = flags_of(load_command(context.invoked_subcommand))
        message, where, hint = (with_flags(text, flags) for text in (error.message, error.where, error.hint))
        return tell(type(error).__name__, message, where=where, hint=hint, exit_code=error.exit_code)
    except KeyboardInterrupt:
        hint = "run the same command again"
        return tell("InterruptedRunError", "interrupted by Ctrl-C", hint=hint, exit_code=130)
    except Exception as error:  # noqa: BLE001  (one line instead of a traceback, whatever it is)
        from llmcompress.system.memory import is_refusal

        if hasattr(error, "format_message"):
            return tell("UsageError", *_usage_error(error), exit_code=int(getattr(error, "exit_code", 2)))
        # Where it is what could not be printed, nor can this.
        if isinstance(error, OSError) and (code := _end_of_output(0, tell, last="\n")):
            return code
        if verbose:
            traceback.print_exception(error)
        if isinstance(error, FileNotFoundError) and not _has_working_directory():
            hint = "change to a directory that is there"
            return tell("UsageError", "the working directory is gone", hint=hint, exit_code=2)
        if is_refusal(error):
            hint = "free memory or raise the limit (ulimit -v, cgroup)"
            return tell("KilledForMemoryError", "an allocation was refused", hint=hint, exit_code=10)
        hint = "" if verbose else "run it again with -v for the whole traceback"
        kind = type(error).__name__
        return tell(kind, f"unexpected {kind}: {error}".splitlines()[0], hint=hint, exit_code=1)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the report was asked for as JSON; an error then is too."""
    formats = itertools.pairwise(arguments)
    return ("--format", "json") in formats or not {"--json", "--format=json"}.isdisjoint(arguments)


def _tell(kind: str, message: str, where: str = "", hint: str = "", *, exit_code: int, as_json: bool) -> int:
    """Print an error to stderr for people, or as one line of JSON; return the exit code."""
    from llmcompress.cli.console import print_error

    error = {"type": kind, "message": message, "where": where, "hint": hint, "exit_code": exit_code}
    # Where nobody can be told, the exit code still says it.
    with contextlib.suppress(OSError):
        if as_json:
            sys.stderr.write(json.dumps({"error": error}) + "\n")
        else:
            print_error(message, where=where, hint=hint)
    return exit_code


def _usage_error(error: Exception) -> tuple[str, str, str]:
    """What is wrong, where, and what to do, of an error of the command-line parser, which leaves out the last."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "llmcompress"
    message = str(error.format_message())  # type: ignore[attr-defined]
    return message[:1].lower() + message[1:].rstrip("."), path, f"{path} --help"


def _replace_closed_streams() -> None:
    """Have nothing read and write where a stream is closed: the next file would get its number, and what is printed."""
    # In this order: a file that is opened gets the lowest number that is free.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _escape_what_stdout_cannot_show() -> None:
    """Have characters that are not in stdout's encoding printed as JSON escapes, so that `--json` stays JSON."""
    codecs.register_error("llmcompress.json", _as_json)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="llmcompress.json")


def _as_json(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _end_of_output(code: int, tell: Callable[..., int], last: str = "") -> int:
    """Print what is still to be printed; return the exit code, another one where that cannot be written."""
    try:
        sys.stdout.write(last)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence_stdout()
        hint = "make room there, or send it somewhere else"
        return tell("WriteError", f"cannot write: {error.strerror}", where="stdout", hint=hint, exit_code=8)
    return code


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


def _silence_stdout() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
