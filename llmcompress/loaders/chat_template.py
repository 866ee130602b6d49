"""The chat template as OpenVINO GenAI renders it, compared with the original; and the token that ends a turn."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from llmcompress.errors import ModelError
from llmcompress.loaders.chat import Message, in_parts, render, wants_parts

_USER = {"role": "user", "content": "What is 2 + 2?"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_ANSWER = "It is four."
_ASSISTANT = {"role": "assistant", "content": _ANSWER}
_MARKED = {"role": "user", "content": ' Naïve "quotes" <b>&amp;</b> 日本 😀\n\n- a {{ b }}\n'}

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (_USER,),
    (_SYSTEM, _USER),
    (_USER, _ASSISTANT),
    (_USER, _ASSISTANT, _MARKED),
    (_SYSTEM, _MARKED, _ASSISTANT, _USER, _ASSISTANT, _MARKED),
)
"""The first must be accepted by every template; the others are skipped where the original refuses them."""


def check_chat_template(
    tokenizer: Any, output_dir: Path, conversations: Sequence[Sequence[Message]] = CONVERSATIONS
) -> Literal["equal", "none", "not checked"]:
    """Render conversations with transformers and with OpenVINO GenAI and compare the results.

    Returns:
        ``equal``; ``none`` when the tokenizer has no chat template; ``not checked`` when openvino_genai is not
        installed (the extra ``genai``). The bounds on the template itself are checked in any case.

    Raises:
        ModelError: the renderings differ, GenAI cannot render, or the template refuses a plain question.
        SecurityError: the template breaks out of its bounds.
    """
    if not tokenizer.chat_template:
        return "none"
    cases = [(messages, prompt) for messages in conversations for prompt in (True, False)]
    written = in_parts if wants_parts(tokenizer) else tuple
    expected = [
        _expected(tokenizer, written(messages), prompt, first=case < 2) for case, (messages, prompt) in enumerate(cases)
    ]
    if importlib.util.find_spec("openvino_genai") is None:
        return "not checked"
    import openvino_genai

    try:
        genai = openvino_genai.Tokenizer(str(output_dir))
    except RuntimeError as error:
        raise _unusable("OpenVINO GenAI cannot open the tokenizer", str(error)) from None
    for (messages, prompt), original in zip(cases, expected, strict=True):
        if original is None:
            continue
        try:
            rendered = genai.apply_chat_template([dict(message) for message in messages], prompt)
        except (RuntimeError, ValueError) as error:
            raise _unusable("OpenVINO GenAI cannot render it", str(error)) from None
        if rendered != original:
            roles = " + ".join(message["role"] for message in messages)
            raise _unusable(
                f"OpenVINO GenAI renders {roles} otherwise", f"got {rendered!r}, the original gives {original!r}"
            )
    return "equal"


def written_texts(tokenizer: Any) -> list[str]:
    """What the chat template makes of ``CONVERSATIONS``, of those that it takes.

    Raises:
        SecurityError: the template breaks out of its bounds.
    """
    if not tokenizer.chat_template:
        return []
    cases = [(messages, prompt) for messages in CONVERSATIONS for prompt in (True, False)]
    made = (_expected(tokenizer, messages, prompt, first=False) for messages, prompt in cases)
    return [text for text in made if text is not None]


def turn_end_id(tokenizer: Any) -> int | None:
    """The token that the chat template writes after an assistant's answer, such as ``<|im_end|>`` or ``<|eot_id|>``.

    None when there is no template, it refuses a question with its answer, or no added token follows the answer.

    Raises:
        SecurityError: the template breaks out of its bounds.
    """
    if not tokenizer.chat_template:
        return None
    try:
        text = render(tokenizer, (_USER, _ASSISTANT), add_generation_prompt=False)
    except ModelError:
        return None
    _, found, rest = text.rpartition(_ANSWER)
    if not found:
        return None
    added = {str(token): int(number) for number, token in tokenizer.added_tokens_decoder.items()}
    # The longest match: <|end|> must not hide <|end|><x> style tokens that begin alike.
    fitting = [token for token in added if token.strip() and rest.lstrip().startswith(token)]
    token_id = added[max(fitting, key=len)] if fitting else None
    only_begins = token_id == tokenizer.bos_token_id != tokenizer.eos_token_id
    return None if only_begins else token_id


def _expected(tokenizer: Any, messages: Sequence[Message], prompt: bool, *, first: bool) -> str | None:
    try:
        return render(tokenizer, messages, add_generation_prompt=prompt)
    except ModelError:
        if first:
            raise
        return None


def _unusable(message: str, detail: str) -> ModelError:
    return ModelError(
        f"{message}: {detail[:600]}",
        where="chat template",
        hint="simplify chat_template.jinja in the source, or convert with `tokenizer=False`",
    )
