"""Chat templates: programs that came with a model, rendered with the time and size they may take bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmcompress.errors import ModelError, SecurityError
from llmcompress.system.deadline import OutOfTimeError, deadline

MAX_TEMPLATE_CHARS = 1 << 20
TIME_LIMIT_S = 5.0

Message = Mapping[str, Any]
"""One turn: ``role`` and ``content``, and what else a template reads."""
_PLAIN: Message = {"role": "user", "content": "What is 2 + 2?"}


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    time_limit_s: float = TIME_LIMIT_S,
    **beside: Any,
) -> str:
    """Render a conversation with the tokenizer's own chat template, in transformers' sandboxed Jinja.

    Args:
        tokenizer: Of transformers, or what has its ``chat_template`` and ``apply_chat_template``.
        messages: The turns.
        add_generation_prompt: End with what stands before an answer.
        time_limit_s: What it may take.
        beside: ``tools`` and ``documents``.

    Raises:
        ModelError: the template refuses this conversation or is broken.
        SecurityError: the template reaches for what the sandbox forbids, or does not end within ``time_limit_s``
            seconds, or is longer than ``MAX_TEMPLATE_CHARS`` characters.
    """
    from jinja2.exceptions import SecurityError as SandboxError

    hint = "do not use this model's chat template, or convert with `tokenizer=False`"
    size = _template_chars(tokenizer.chat_template)
    if size > MAX_TEMPLATE_CHARS:
        raise SecurityError(
            f"the chat template has {size} characters, at most {MAX_TEMPLATE_CHARS} are accepted",
            where="chat template",
            hint=hint,
        )
    try:
        with deadline(time_limit_s):
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **beside,
            )
    except OutOfTimeError:
        message = f"rendering did not end within {time_limit_s:g} s"
        raise SecurityError(message, where="chat template", hint=hint) from None
    except (SandboxError, RecursionError, OverflowError, MemoryError) as error:
        raise SecurityError(
            f"rendering was stopped by the sandbox: {_told(error)}", where="chat template", hint=hint
        ) from None
    except Exception as error:  # noqa: BLE001 - a template is a program: it can raise anything
        raise ModelError(
            f"the template refuses the conversation {_roles(messages)}: {_told(error)}",
            where="chat template",
            hint="check chat_template.jinja or the chat_template of tokenizer_config.json",
        ) from None
    return str(text)


def in_parts(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The same turns, each a list of one text, as templates that also take pictures have them."""
    return tuple({**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages)


def wants_parts(tokenizer: Any) -> bool:
    """Whether a chat template loses or refuses plain text, and takes lists of parts; GenAI puts text into such a list.

    Args:
        tokenizer: As of ``render``.

    Raises:
        SecurityError: As ``render``.
    """
    for messages in ((_PLAIN,), in_parts((_PLAIN,))):
        try:
            if _PLAIN["content"] in render(tokenizer, messages, add_generation_prompt=True):
                return messages[0] is not _PLAIN
        except ModelError:
            continue
    return False


def _template_chars(template: object) -> int:
    if isinstance(template, dict):
        return sum(len(str(part)) for part in template.values())
    return len(template) if isinstance(template, str) else 0


def _roles(messages: Sequence[Message]) -> str:
    return " + ".join(str(message.get("role", "?")) for message in messages)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
