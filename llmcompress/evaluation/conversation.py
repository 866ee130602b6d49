"""A question, put through the chat template of a model's directory, without transformers and its torch."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from llmcompress.data.tokens import TextEncoder
from llmcompress.errors import ModelError
from llmcompress.loaders import chat
from llmcompress.system.json_file import read_json

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to five.")


class ChatTemplate:
    """The template and the special tokens of a directory, rendered as transformers documents it.

    See "Chat templates" in the documentation of transformers: a sandboxed Jinja with trimmed blocks, loop controls,
    ``raise_exception``, ``strftime_now`` and a ``tojson`` that leaves HTML alone.
    """

    def __init__(self, template: str, special_tokens: dict[str, str]) -> None:
        self.chat_template = template
        self._special_tokens = special_tokens

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Render; the signature is that of a transformers tokenizer, whose place it takes in ``chat.render``."""
        from jinja2.exceptions import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        rendered: str = environment.from_string(self.chat_template).render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )
        return rendered


def chat_template(directory: Path) -> ChatTemplate | None:
    """Read the chat template of a directory; None where it has none."""
    path = directory / TOKENIZER_CONFIG
    config = read_json(path) if path.is_file() else {}
    template = config.get("chat_template")
    if (directory / TEMPLATE).is_file():
        template = (directory / TEMPLATE).read_text(encoding="utf-8")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        return None
    tokens = {}
    for name, token in config.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return ChatTemplate(template, tokens)


def prompts(directory: Path, encoder: TextEncoder) -> list[list[int]] | None:
    """Token ids of ``QUESTIONS`` by the chat template of a directory; None where it has none or refuses one.

    Raises:
        ModelError: The template writes a token that the model does not have.
        SecurityError: The template breaks out of its bounds.
    """
    template = chat_template(directory)
    if template is None:
        return None
    made = [question_ids(template, encoder, question) for question in QUESTIONS]
    found = [ids for ids in made if ids is not None]
    return found if len(found) == len(made) else None


def question_ids(template: ChatTemplate, encoder: TextEncoder, question: str) -> list[int] | None:
    """Token ids of one user turn with the prompt for its answer; None where the template refuses the conversation.

    Raises:
        SecurityError: The template breaks out of its bounds.
    """
    asked: tuple[chat.Message, ...] = ({"role": "user", "content": question},)
    if chat.wants_parts(template):
        asked = chat.in_parts(asked)
    try:
        text = chat.render(template, asked, add_generation_prompt=True)
    except ModelError:
        return None
    return encoder.ids(text, special=False)
