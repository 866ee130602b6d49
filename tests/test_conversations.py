"""Conversations against ``apply_chat_template`` of transformers, for calibration and for evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import llmcompress
from llmcompress.cli.demo import CHECKPOINT
from llmcompress.data import calibration_windows
from llmcompress.data.documents import read_documents, texts_for
from llmcompress.data.protocols import evaluation_windows, scored_text
from llmcompress.data.tokens import text_encoder
from llmcompress.errors import DataError, SecurityError, UsageError
from llmcompress.loaders.resolving import resolve
from llmcompress.spec import Calibration, EvalSpec
from tests import tokenizer_fixture

TEMPLATE = """
{%- if tools %}tools: {{ tools | tojson }}
{% endif %}
{%- for document in documents or [] %}{{ document.title }}: {{ document.text }}
{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}{% if message.name %} {{ message.name }}{% endif %}
{% if message.reasoning_content or message.thinking %}<think>{{ message.reasoning_content or message.thinking }}</think>
{% endif %}
{%- if message.content is string %}{{ message.content }}
{%- elif message.content %}
{%- for part in message.content %}{{ part.text if part.type == 'text' else '[' ~ part.type ~ ']' }}{% endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}<call {{ call.id }}>{{ call.function.name }}
{%- for name, value in call.function.arguments.items() %} {{ name }}={{ value | tojson }}{% endfor %}
{%- endfor %}
{%- if message.tool_call_id %} (answers {{ message.tool_call_id }}){% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SCHEMA = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}}
ASKED = {"role": "user", "content": "Rain in Rome?"}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "dry"}
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
PARTS = [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?"}]
SHAREGPT_CALL = {"name": "weather", "arguments": {"city": "Rome"}}
TOOLS_AS_TURNS = [
    {"role": "system", "content": "Be brief."},
    ASKED,
    {"role": "assistant", "tool_calls": [{"type": "function", "function": SHAREGPT_CALL}]},
    {"role": "tool", "content": "dry"},
    {"role": "assistant", "content": "No."},
]
SHAREGPT = [
    {"from": "human", "value": "Rain in Rome?"},
    {"from": "function_call", "value": json.dumps(SHAREGPT_CALL)},
    {"from": "observation", "value": "dry"},
    {"from": "gpt", "value": "No."},
]

ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "tools": (
        {"messages": [ASKED, CALLED, ANSWERED], "tools": [SCHEMA]},
        [ASKED, CALLED, ANSWERED],
        {"tools": [SCHEMA]},
    ),
    "tools as text": (
        {"messages": json.dumps([ASKED, CALLED]), "tools": json.dumps([SCHEMA])},
        [ASKED, CALLED],
        {"tools": [SCHEMA]},
    ),
    "no tools": ({"messages": [ASKED], "tools": [], "documents": None}, [ASKED], {}),
    "arguments as text": (
        {"messages": [ASKED, {**CALLED, "tool_calls": [{**CALL, "function": {
            "name": "weather", "arguments": json.dumps(CALL["function"]["arguments"])}}]}]},
        [ASKED, CALLED],
        {},
    ),
    "reasoning": (
        {"messages": [ASKED, {"role": "assistant", "content": "No.", "reasoning_content": "Summer."}]},
        [ASKED, {"role": "assistant", "content": "No.", "reasoning_content": "Summer."}],
        {},
    ),
    "thinking alone": (
        {"messages": [ASKED, {"role": "assistant", "thinking": "Summer."}]},
        [ASKED, {"role": "assistant", "thinking": "Summer."}],
        {},
    ),
    "parts": ({"messages": [{"role": "user", "content": PARTS}]}, [{"role": "user", "content": PARTS}], {}),
    "documents": (
        {"messages": [ASKED], "documents": [{"title": "Rome", "text": "It is dry."}]},
        [ASKED],
        {"documents": [{"title": "Rome", "text": "It is dry."}]},
    ),
    "sharegpt": ({"conversations": SHAREGPT, "system": "Be brief."}, TOOLS_AS_TURNS, {}),
    "sharegpt with its system": (
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT], "system": "Be brief."},
        TOOLS_AS_TURNS,
        {},
    ),
    "json in a question": (
        {"text": '[{"a": 1}] is?'},
        [{"role": "user", "content": '[{"a": 1}] is?'}],
        {"add_generation_prompt": True},
    ),
    "a json question": (
        {"text": '[{"a": 1}]'},
        [{"role": "user", "content": '[{"a": 1}]'}],
        {"add_generation_prompt": True},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_fixture.byte_level(TEMPLATE)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stock_ids(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, **options)["input_ids"]
    return ids


def calibrated(path: Path, tokenizer: Any, **options: Any) -> list[list[int]]:
    values = {"num_samples": 1, "seq_len": 16, "chat_template": True, **options}
    made: list[list[int]] = calibration_windows(Calibration(dataset=str(path), **values), tokenizer).token_ids.tolist()
    return made


@pytest.mark.parametrize("name", ROWS)
def test_the_template_gets_what_apply_chat_template_gets(name: str, tokenizer: Any, tmp_path: Path) -> None:
    row, messages, options = ROWS[name]
    expected = stock_ids(tokenizer, messages, **options)
    assert calibrated(jsonl(tmp_path / "rows.jsonl", [row]), tokenizer, seq_len=len(expected)) == [expected]


def test_what_a_schema_adds_to_the_rows_of_a_table_does_not_reach_the_template(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    other = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {"messages": [ASKED, CALLED, ANSWERED], "tools": [SCHEMA], "source": "a"},
        {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [other]}], "tools": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert read[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
        "city": None,
        "days": None,
        "zone": "CET",
    }
    parts = [stock_ids(tokenizer, row["messages"], tools=row["tools"]) for row in rows]
    found = calibrated(tmp_path / "rows.parquet", tokenizer, seq_len=sum(map(len, parts)))
    assert found in ([parts[0] + parts[1]], [parts[1] + parts[0]])


def test_a_template_that_wants_the_arguments_as_text_gets_them(tmp_path: Path) -> None:
    tokenizer = tokenizer_fixture.byte_level(
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ 'calls ' + c.arguments }}{% endfor %}{% endfor %}"
    )
    messages = [ASKED, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": '{"a":1}'}]}]
    expected = stock_ids(tokenizer, messages)
    path = jsonl(tmp_path / "rows.jsonl", [{"messages": messages}])
    assert calibrated(path, tokenizer, seq_len=len(expected)) == [expected]


NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}" \
    "{{ 'said ' + m.content }}{% endfor %}"  # fmt: skip
SYSTEM = {"role": "system", "content": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [SYSTEM, ASKED]}, r"refuses the conversation system \+ user: TemplateError: No system here"),
        ({"messages": [ASKED], "system": "x"}, "No system here"),
        ({"messages": [CALLED]}, "TypeError: can only concatenate str"),
        ({"messages": [{"role": "user", "content": None}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": 7}]}, "not a conversation"),
        ({"messages": [{"content": "x"}]}, "not a conversation"),
        ({"messages": []}, "not a conversation"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "from 'narrator', accepted are system, human,"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, r"from \['gpt'\], accepted are system, human,"),
        ({"messages": json.dumps([{"role": "user", "content": "\ud800"}])}, "half of a surrogate pair"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "is not the JSON of a call"),
        ({"conversations": [{"from": "function_call", "value": '[{"arguments": {}}]'}]}, "is not the JSON of a call"),
        ({"messages": [ASKED], "system": ["x"]}, "`system` is no text, or another one"),
        ({"messages": [SYSTEM, ASKED], "system": "y"}, "`system` is no text, or another one"),
        ({"messages": [ASKED], "tools": "weather"}, "`tools` is no list of objects"),
        ({"messages": [ASKED], "documents": ["Rome"]}, "`documents` is no list of objects"),
    ],
)
def test_a_row_that_cannot_be_written_out_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": ""}, row])
    with pytest.raises(DataError, match=message) as caught:
        calibrated(path, tokenizer_fixture.byte_level(NO_SYSTEM))
    assert caught.value.where == "rows.jsonl: line 2"
    assert caught.value.hint


def test_the_row_of_a_table_is_named_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"messages": [[SYSTEM]]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="No system here") as caught:
        calibrated(tmp_path / "rows.parquet", tokenizer_fixture.byte_level(NO_SYSTEM))
    assert caught.value.where == "rows.parquet: row 1"


def test_what_does_not_reach_the_text_is_said_once(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [ASKED, {"role": "assistant", "content": "No." * 20, "weight": 1, "refusal": None}]
    rows = [{"messages": turns, "id": number, "source": None} for number in range(3)]
    calibrated(jsonl(tmp_path / "rows.jsonl", [*rows, {"text": ""}, {"text": "Why?"}]), tokenizer, seq_len=32)
    assert [record.message for record in caplog.records] == [
        "rows.jsonl: 5 conversations; empty, left out: 1; fields of rows, left out: 'id' (3); "
        "not mentioned by the chat template: 'weight' (3)"
    ]
    caplog.clear()
    printing = tokenizer_fixture.byte_level("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    calibrated(jsonl(tmp_path / "parts.jsonl", [{"messages": [{"role": "user", "content": PARTS}]}]), printing)
    assert [record.message for record in caplog.records] == [
        "parts.jsonl: 1 conversations; with lists of parts that the chat template prints as lists: 1"
    ]
    caplog.clear()
    calibrated(jsonl(tmp_path / "whole.jsonl", [{"messages": [ASKED] * 5}]), tokenizer, seq_len=32)
    assert not caplog.records


# --- evaluation

TURNS = [
    [
        {"role": "user", "content": f"Question {number}: what is {number} and {number}?"},
        {"role": "assistant", "content": f"It is {2 * number}, and that is all there is to say. " * 4},
    ]
    for number in range(6)
]


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "chat.jsonl", [{"messages": turns, "id": 1} for turns in TURNS])


@pytest.fixture(scope="module")
def demo_ids() -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return [stock_ids(tokenizer, turns) for turns in TURNS]


def chat_spec(path: Path, **options: Any) -> EvalSpec:
    return EvalSpec(dataset=str(path), chat_template=True, precision="pinned", **{"seq_len": 32, **options})


def windows(spec: EvalSpec) -> list[tuple[list[int], int, int]]:
    source = resolve(CHECKPOINT)
    made = evaluation_windows(texts_for(read_documents(spec), source), spec, text_encoder(source))
    return [(window.token_ids.tolist(), window.first_scored, window.cluster) for window in made.windows]


def test_conversations_follow_one_another_in_windows(chat_file: Path, demo_ids: list[list[int]]) -> None:
    stream = [token for ids in demo_ids for token in ids]
    bos = text_encoder(resolve(CHECKPOINT)).frame.before[0]
    count = len(stream) // 32
    assert count > 4
    pieces = [stream[start : start + 32] for start in range(0, count * 32, 32)]
    assert windows(chat_spec(chat_file)) == [([bos, *piece[1:]], 17, n) for n, piece in enumerate(pieces)]
    sliding = windows(chat_spec(chat_file, protocol="sliding", stride=16))
    assert [token for ids, first, _ in sliding for token in ids[first:]] == stream[1:]
    few = windows(chat_spec(chat_file, num_windows=2))
    assert few == windows(chat_spec(chat_file))[:2]


def test_rolling_takes_a_conversation_as_a_document_without_a_second_beginning(
    chat_file: Path, demo_ids: list[list[int]]
) -> None:
    made = windows(chat_spec(chat_file, protocol="rolling", seq_len=512))
    assert made == [(ids, 1, number) for number, ids in enumerate(demo_ids)]
    assert demo_ids[0][0] == text_encoder(resolve(CHECKPOINT)).prefix_id != demo_ids[0][1]
    one = jsonl(chat_file.with_name("one.jsonl"), [{"messages": TURNS[0]}])
    clusters = [cluster for *_, cluster in windows(chat_spec(one, protocol="rolling"))]
    assert clusters == list(range(math.ceil((len(demo_ids[0]) - 1) / 32))) != [0]
    spec = chat_spec(chat_file, protocol="rolling", seq_len=512, num_windows=2)
    record = scored_text(resolve(CHECKPOINT), spec)
    assert (record.num_documents, record.num_scored_tokens) == (2, sum(len(ids) - 1 for ids in demo_ids[:2]))


def test_perplexity_of_conversations_equals_torch(
    chat_file: Path, demo_ids: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    total = 0.0
    for ids in demo_ids:
        with torch.no_grad():
            total += float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) * (len(ids) - 1)
    spec = chat_spec(chat_file, protocol="rolling", seq_len=256)
    assert max(map(len, demo_ids)) <= 256
    report = llmcompress.evaluate(CHECKPOINT, spec, reference=CHECKPOINT)
    count = sum(len(ids) - 1 for ids in demo_ids)
    assert report.text.num_scored_tokens == count
    assert report.spec.chat_template
    assert report.model.perplexity.perplexity.value == pytest.approx(math.exp(total / count), rel=1e-3)
    assert report.model.perplexity.word_perplexity is None
    assert [record.message for record in caplog.records if record.name.startswith("llmcompress.data")] == [
        "chat.jsonl: 6 conversations; fields of rows, left out: 'id' (6)"
    ]


def test_a_model_that_cannot_write_conversations_is_refused(chat_file: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(CHECKPOINT, bare, ignore=shutil.ignore_patterns("chat_template.jinja"))
    with pytest.raises(UsageError, match="tokenizer has no chat template") as caught:
        scored_text(resolve(bare), chat_spec(chat_file))
    assert caught.value.where == "`chat_template`"
    (bare / "chat_template.jinja").write_text("{% for i in range(10 ** 9) %}{% endfor %}")
    with pytest.raises(SecurityError, match="stopped by the sandbox"):
        scored_text(resolve(bare), chat_spec(chat_file))
    with pytest.raises(DataError, match="the text has 0 tokens"):
        scored_text(resolve(CHECKPOINT), chat_spec(jsonl(tmp_path / "empty.jsonl", [{"text": ""}])))
