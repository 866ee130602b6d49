"""Rows of a dataset -> conversations -> the text that the model's own chat template makes of them.

The template gets what ``apply_chat_template`` of transformers would give it for the same messages: every field of a
message as it is written, and the row's ``tools`` and ``documents``.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llmcompress.data.texts import Columns, Rows, require_encodable
from llmcompress.errors import DataError, ModelError, UsageError
from llmcompress.loaders import chat
from llmcompress.spec.validation import shown

MAX_NAMES = 8

_FIELDS = ("messages", "conversations", "text")
_BESIDE = ("system", "tools", "documents")
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""ShareGPT's names of who speaks -> roles."""
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")

_log = logging.getLogger(__name__)


class Conversation(NamedTuple):
    """What a row says."""

    messages: list[dict[str, Any]]
    beside: dict[str, Any]
    """``tools`` and ``documents``, where the row has any."""
    add_generation_prompt: bool = False
    """For a text without an answer."""


def conversation_columns(text_field: str) -> Columns:
    """The field that holds conversations, and what is read next to it."""
    return Columns(_FIELDS if text_field == "text" else (text_field,), _BESIDE)


def conversation_of(rows: Rows, index: int) -> Conversation:
    """Read one row that is not empty.

    A string is a single user turn with the prompt for the answer. ShareGPT's ``from`` and ``value`` become ``role`` and
    ``content``, its ``function_call`` a tool call, and ``system`` next to the messages the first of them. Arguments of
    tool calls that are written as JSON stay so.

    Raises:
        DataError: The row holds no conversation; names it.
    """
    value, beside, place = rows.value(index), rows.beside(index), rows.place(index)
    if rows.has_schema:
        value, beside = _without_nulls([value, beside])
    turns = _decoded(value)
    is_list = isinstance(turns, list) and bool(turns) and all(isinstance(turn, Mapping) for turn in turns)
    is_text = isinstance(value, str) and not (is_list and ("role" in turns[0] or "from" in turns[0]))
    if not is_text and not is_list:
        raise _not_a_conversation(place)
    messages = [{"role": "user", "content": value}] if is_text else [_message(turn, place) for turn in turns]
    system = beside.pop("system", None)
    if system:
        messages = _with_system(messages, system, place)
    lists = {name: _list_of_objects(name, given, place) for name, given in beside.items()}
    return Conversation(messages, {name: given for name, given in lists.items() if given}, is_text)


class Conversations:
    """The conversations of a dataset as one model's chat template writes them, each when it is asked for."""

    def __init__(self, rows: Rows, tokenizer: Any, parameter: str) -> None:
        """Take rows as ``conversation_columns`` reads them.

        Args:
            rows: Of which those that are empty give an empty text.
            tokenizer: A transformers tokenizer.
            parameter: What asked for the template, for the message.

        Raises:
            UsageError: There is no chat template.
        """
        if not tokenizer.chat_template:
            raise UsageError(
                "the model's tokenizer has no chat template",
                where=parameter,
                hint="leave it out, or take a model whose tokenizer has one",
            )
        self._rows, self._tokenizer = rows, tokenizer
        self._texts: dict[int, str] = {}
        self._unread: Counter[str] = Counter()
        self._lists = 0
        self._told = False

    def __len__(self) -> int:
        return len(self._rows.records)

    def __iter__(self) -> Iterator[str]:
        return map(self.text, range(len(self)))

    def text(self, index: int) -> str:
        """Render the conversation at an index.

        Raises:
            DataError: The row holds no conversation, or the template refuses it; names the row.
            SecurityError: The template breaks out of its bounds.
        """
        if index not in self._texts:
            self._texts[index] = self._rendered(index) if self._rows.value(index) != "" else ""
        return self._texts[index]

    def warn_of_losses(self) -> None:
        """Say once what of the rows that were read did not reach the text."""
        empty = sum(not text.strip() for text in self._texts.values())
        losses = [f"empty, left out: {empty:,}"] if empty else []
        if self._rows.left_out:
            losses.append(f"fields of rows, left out: {_counted(self._rows.left_out)}")
        if self._unread:
            losses.append(f"not mentioned by the chat template: {_counted(self._unread)}")
        if self._lists:
            losses.append(f"with lists of parts that the chat template prints as lists: {self._lists:,}")
        if losses and not self._told:
            self._told = True
            read = f"{len(self._texts):,} conversations"
            _log.warning("%s: %s", self._rows.where, "; ".join([read, *losses]))

    def _rendered(self, index: int) -> str:
        conversation = conversation_of(self._rows, index)
        template = str(self._tokenizer.chat_template)
        names = (name for message in conversation.messages for name, value in message.items() if value is not None)
        self._unread.update(name for name in (*names, *conversation.beside) if name not in template)
        try:
            text = _render(self._tokenizer, conversation)
        except ModelError as error:
            raise DataError(
                error.message, where=self._rows.place(index), hint="write it as the model's template wants it"
            ) from None
        require_encodable(text, self._rows.place(index))
        contents = (message.get("content") for message in conversation.messages)
        self._lists += any(isinstance(content, list) and str(content) in text for content in contents)
        return text


def _render(tokenizer: Any, conversation: Conversation) -> str:
    def rendered(messages: Sequence[chat.Message]) -> str:
        prompt = conversation.add_generation_prompt
        return chat.render(tokenizer, messages, add_generation_prompt=prompt, **conversation.beside)

    decoded = [_with_arguments(message) for message in conversation.messages]
    try:
        return rendered(decoded)
    except ModelError:
        # Templates are documented to get objects; some of them are written for the JSON text of the wire.
        if decoded == conversation.messages:
            raise
        return rendered(conversation.messages)


def _message(written: Mapping[str, Any], place: str) -> dict[str, Any]:
    message = dict(written)
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, place)
    content = message.get("content")
    says = isinstance(content, (str, list)) or (
        content is None and any(message.get(name) for name in _INSTEAD_OF_CONTENT)
    )
    if not isinstance(message.get("role"), str) or not says:
        raise _not_a_conversation(place)
    return message


def _with_system(messages: list[dict[str, Any]], system: object, place: str) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system" and isinstance(system, str):
        return [{"role": "system", "content": system}, *messages]
    if messages[0].get("content") != system:
        raise DataError(
            "`system` is no text, or another one than the first message's", where=place, hint="leave one of them out"
        )
    return messages


def _from_sharegpt(message: dict[str, Any], place: str) -> dict[str, Any]:
    speaker, value = message.pop("from"), message.pop("value", None)
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise DataError(
            f"a turn is from {shown(speaker)}, accepted are {', '.join(_ROLES)}", where=place, hint="name one of them"
        )
    if speaker != "function_call":
        return {"role": _ROLES[speaker], "content": value, **message}
    called = _decoded(value)
    calls = called if isinstance(called, list) else [called]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise DataError(
            "a function_call is not the JSON of a call",
            where=place,
            hint='write it as {"name": ..., "arguments": {...}}, or a list of such',
        )
    return {
        "role": _ROLES[speaker],
        "tool_calls": [{"type": "function", "function": call} for call in calls],
        **message,
    }


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """A message in which the arguments of tool calls are objects, as transformers documents them, not JSON text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if "function" in call:
        return {**call, "function": _with_object(call["function"])}
    arguments = _decoded(call.get("arguments"))
    return {**call, "arguments": arguments} if isinstance(arguments, Mapping) else call


def _without_nulls(value: Any) -> Any:
    """What a row said before a schema gave it the fields of all rows; only a turn's ``content`` is null itself."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        may_be_null = {"content"} if "role" in value else set()
        return {name: _without_nulls(each) for name, each in value.items() if each is not None or name in may_be_null}
    return value


def _list_of_objects(name: str, given: object, place: str) -> list[Any]:
    found = _decoded(given)
    if found == "":
        return []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise DataError(f"`{name}` is no list of objects", where=place, hint="write it as a list, or as its JSON text")
    return found


def _decoded(value: object) -> Any:
    """The list or object that a text is the JSON of; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _not_a_conversation(place: str) -> DataError:
    return DataError(
        'not a conversation: a list of {"role": text, "content": text} or {"from": text, "value": text}, or a string '
        "is needed",
        where=place,
        hint="write the turns as messages, or leave chat_template out",
    )


def _counted(names: Mapping[str, int]) -> str:
    shown = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name!r} ({count:,})" for name, count in shown[:MAX_NAMES])
    return text + (", ..." if len(shown) > MAX_NAMES else "")
