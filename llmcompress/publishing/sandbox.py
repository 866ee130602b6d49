"""Templates, rendered where they reach nothing but their variables, within bounds of time and size.

Jinja's immutable sandbox (https://jinja.palletsprojects.com/en/stable/sandbox/) with undefined names as errors. Every
value is made inert for Markdown and HTML when it is printed; only what a filter of ``markdown.py`` made is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError as SandboxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from llmcompress.errors import UsageError
from llmcompress.publishing.markdown import chat_request, code, fence, prose, python_text, shell_word
from llmcompress.report.estimate import Estimate, interval_text
from llmcompress.report.text import count_text, size_text
from llmcompress.system.deadline import OutOfTimeError, deadline

PACKAGED = "card.md.j2"
MAX_TEMPLATE_CHARS = 256 * 1024
MAX_PAGE_CHARS = 2_000_000
TIME_LIMIT_S = 10.0

_HINT = "see docs/cards.md for what a template may use; {% extends 'card.md.j2' %} starts from the packaged one"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses the operators that make much out of little in one step, which no time limit stops."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = all(isinstance(value, int | float) and abs(value) < 2**64 for value in (left, right))
        if not numbers or (operator == "**" and abs(right) > 64):
            raise SandboxError(f"the operator {operator} is for numbers of usual size here")
        return super().call_binop(context, operator, left, right)


def render(variables: Mapping[str, object], template: Path | None = None) -> str:
    """Render the packaged template or one's own.

    Raises:
        UsageError: The template cannot be read, is wrong, names what is not there, reaches for what the sandbox
            forbids, or makes too long a page or takes too long.
    """
    where = PACKAGED if template is None else str(template)
    own = None if template is None else _read(template)
    parts: list[str] = []
    size = 0
    try:
        environment = _environment()
        # Compiling does no more than the template is long: what could grow is calculated when it runs.
        compiled = environment.get_template(PACKAGED) if own is None else environment.from_string(own)
        # The packaged template is known to end.
        with nullcontext() if own is None else deadline(TIME_LIMIT_S):
            for part in compiled.generate(dict(variables)):
                parts.append(part)
                size += len(part)
                if size > MAX_PAGE_CHARS:
                    raise UsageError(
                        f"makes a page of more than {MAX_PAGE_CHARS:,} characters", where=where, hint=_HINT
                    )
    except OutOfTimeError:
        raise UsageError(f"takes more than {TIME_LIMIT_S:g} s", where=where, hint=_HINT) from None
    except TemplateSyntaxError as error:
        raise UsageError(
            f"is no Jinja template: {error.message}", where=f"{where}:{error.lineno}", hint=_HINT
        ) from None
    except UndefinedError as error:
        known = ", ".join(sorted(variables))
        raise UsageError(f"names what is not there: {error.message}", where=where, hint=f"variables: {known}") from None
    except SandboxError as error:
        raise UsageError(f"reaches for what the sandbox forbids: {error.message}", where=where, hint=_HINT) from None
    except TemplateNotFound as error:
        raise UsageError(
            f"includes {error.name!r}; only {PACKAGED!r} is there", where=where, hint="put the text into the template"
        ) from None
    except (TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
            ValueError) as error:  # fmt: skip
        # A template is a program: it can raise anything.
        raise UsageError(f"fails: {type(error).__name__}: {error}"[:300], where=where, hint=_HINT) from None
    return "".join(parts)


@cache
def _environment() -> _Sandbox:
    packaged = (resources.files("llmcompress.publishing") / PACKAGED).read_text(encoding="utf-8")
    environment = _Sandbox(
        loader=DictLoader({PACKAGED: packaged}),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=prose,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fence": fence,
        "python": python_text,
        "shell": shell_word,
        "chat_request": chat_request,
        "size_text": size_text,
        "count_text": count_text,
        "interval_text": _interval,
    }
    return environment


def _interval(estimate: Mapping[str, object], form: str = ".4g") -> Markup:
    # Figures only: the brackets need no escapes.
    return Markup(interval_text(Estimate.model_validate(estimate), form))


def _read(template: Path) -> str:
    try:
        text = template.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("no such template", where=str(template), hint="check the path") from None
    except UnicodeDecodeError:
        raise UsageError("the template is not UTF-8", where=str(template), hint="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(template), hint="give a Jinja template in a file"
        ) from error
    if len(text) > MAX_TEMPLATE_CHARS:
        raise UsageError(
            f"has {len(text):,} characters, at most {MAX_TEMPLATE_CHARS:,} are accepted",
            where=str(template),
            hint="write a shorter template",
        )
    return text
