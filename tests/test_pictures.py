"""Questions about pictures: what is asked, how both models answer, and what the report says of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import FakeHub, new_repo, running, use
from llava_fixture import checkpoint, int8, loaded
from PIL import Image
from push_fixture import TOKEN, evaluation, held
from summary_fixture import write_evaluation, write_model
from vision_fixture import picture

import llmcompress
from llmcompress.artifact import write_report
from llmcompress.cli.evaluation_report import print_evaluation
from llmcompress.data.picture_pairs import picture_pairs
from llmcompress.data.pictures import read_pictures
from llmcompress.errors import DataError, ModelError, UsageError
from llmcompress.evaluation.gate import gate_record, picture_checks, threshold_checks
from llmcompress.evaluation.pictures import Looked, Looking, embedding_error, look, look_where_it_runs, score
from llmcompress.graph.device import properties_of
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.processor import open_processor
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.seeing import Reply, answer, language_inputs, open_sight, picture_prompt
from llmcompress.report.estimate import interval_text
from llmcompress.spec import Calibration, Gate
from llmcompress.summary.table import lines

__all__ = ["checkpoint", "int8", "loaded"]

PARTS = ("vision_embeddings_model", "text_embeddings_model")
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of one's own: two pictures, in a folder next to the file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "seen").mkdir()
    picture().save(folder / "seen" / "one.png")
    picture().rotate(90).convert("RGBA").save(folder / "seen" / "two.png")
    rows = [{"image": f"seen/{name}.png", "question": QUESTION} for name in ("one", "two")]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "questions.jsonl"


def exact() -> dict[str, str]:
    return properties_of("CPU", "pinned")


def torch_answers(checkpoint: Path, prompt: dict[str, Any], token_ids: list[int]) -> tuple[Any, Any]:
    """Torch's logits of an answer's tokens after a question with a picture, and what it is given of the picture."""
    import torch
    from transformers import AutoModelForImageTextToText

    module = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    ids = torch.cat([prompt["input_ids"], torch.tensor([token_ids])], dim=1)
    inputs = dict(prompt) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = module(**inputs).logits[0, prompt["input_ids"].shape[1] - 1 : -1]
        found = module.model.get_image_features(prompt["pixel_values"])
    return logits.numpy(), torch.cat(list(found.pooler_output)).numpy()


def test_the_pictures_that_come_along_are_the_same_everywhere() -> None:
    found = read_pictures("bundled")
    assert len(found.questions) == 8
    assert all(each.picture.size == (448, 448) and each.question for each in found.questions)
    assert len({each.picture.tobytes() for each in found.questions}) == 8
    circle = np.asarray(found.questions[0].picture)
    # Of a disc of radius 130 in a square of 448.
    assert (circle[..., 1] < 100).mean() == pytest.approx(np.pi * 130**2 / 448**2, rel=0.01)
    assert found.sha256 == SHA256
    (house,) = (each.picture for each in found.questions if each.name == "house")
    with Image.open(Path(__file__).parent.parent / "docs" / "images" / "house.png") as shown:
        assert shown.convert("RGB").tobytes() == house.tobytes()


SHA256 = "82538bfcf3276a01e95fcfa4fc0ea7aa35cfca1608cefeeda3ce380f7af5cc4e"


def test_answers_with_a_picture_are_torchs(loaded: llmcompress.LoadedModel, checkpoint: Path) -> None:
    sight = open_sight(loaded, "CPU", exact())
    prompt = picture_prompt(sight, QUESTION, picture())
    said = answer(sight, prompt, 6)
    expected, seen = torch_answers(checkpoint, prompt, said.token_ids.tolist())
    assert said.token_ids.tolist() == expected.argmax(axis=1).tolist()
    # Of logits up to 1; rounding in another order, 1e-6 as measured.
    assert np.abs(said.logits - expected).max() < 1e-4
    assert np.abs(said.seen - seen).max() < 1e-4
    # What a model is made to say gets the logits that torch has for it.
    other = [3, 7, 11, 5]
    repeated = answer(sight, prompt, 6, other)
    assert repeated.token_ids.tolist() == other
    assert np.abs(repeated.logits - torch_answers(checkpoint, prompt, other)[0]).max() < 1e-4


def test_what_a_language_model_is_fed_is_what_its_parts_make(loaded: llmcompress.LoadedModel) -> None:
    from llmcompress.graph.device import compile_model

    sight = open_sight(loaded, "CPU", exact())
    prompt = picture_prompt(sight, QUESTION, picture())
    fed = language_inputs(sight, prompt)
    ids = prompt["input_ids"].numpy()
    vision, text = (
        compile_model(loaded.parts[f"{part}_embeddings_model"], "CPU", exact())([given])[0]
        for part, given in (("vision", prompt["pixel_values"].numpy()), ("text", ids))
    )
    expected = text.copy()
    expected[ids == 266] = vision.reshape(-1, vision.shape[-1])
    assert np.array_equal(fed["inputs_embeds"], expected)
    assert fed.keys() >= {"attention_mask", "position_ids", "beam_idx"}
    # Nothing is left of having listened.
    assert answer(sight, prompt, 2).token_ids.size == 2


def test_scores_of_answers_are_those_of_their_distributions() -> None:
    from scipy.special import rel_entr, softmax

    draw = np.random.default_rng(0)
    theirs, mine = (draw.normal(size=(5, 11)).astype(np.float32) for _ in range(2))
    theirs[:, 3] = -np.inf
    token_ids = np.array([0, 1, 2, 4, 5])
    seen = np.ones((1, 4), np.float32)
    found = score(Reply(token_ids, mine, seen), Reply(token_ids, theirs, seen))
    p, q = softmax(theirs.astype(np.float64), 1), softmax(mine.astype(np.float64), 1)
    assert found["kl"] == pytest.approx(rel_entr(p, q).sum(axis=1))
    assert found["nll"] == pytest.approx(-np.log(q[np.arange(5), token_ids]))
    assert found["reference_nll"] == pytest.approx(-np.log(p[np.arange(5), token_ids]))
    assert found["agrees"].tolist() == (theirs.argmax(1) == mine.argmax(1)).tolist()
    with pytest.raises(ModelError, match="the candidate's vocabulary has 10 tokens, the reference's 11"):
        score(Reply(token_ids, mine[:, 1:], seen), Reply(token_ids, theirs, seen))


def test_the_error_of_embeddings_is_an_angle_and_a_length() -> None:
    theirs = np.array([[1, 0], [0, 2]], np.float32)
    assert embedding_error(theirs, theirs) == (1.0, 0.0)
    # One of the two turned by 90 degrees.
    cosine, distance = embedding_error(np.array([[1, 0], [2, 0]], np.float32), theirs)
    assert (cosine, distance) == (0.5, pytest.approx(np.sqrt(8) / np.sqrt(5)))
    assert embedding_error(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) == (0.0, 0.0)


@pytest.fixture(scope="module")
def looked(loaded: llmcompress.LoadedModel, int8: Path, own: Path) -> Looked:
    how = Looking(read_pictures(str(own)), "CPU", exact(), 0.95, splits=True)
    return look(llmcompress.load(int8, tokenizer=False), loaded, how, lambda progress: None)


def test_what_was_lost_is_said_of_the_whole_and_of_each_part(looked: Looked, loaded: llmcompress.LoadedModel) -> None:
    found = looked.record
    assert found is not None
    assert (found.dataset, found.num_questions, found.num_scored_tokens) == ("questions.jsonl", 2, 64)
    assert found.divergence is not None
    assert found.vision is not None
    # 8 bits and random weights; 1e-4, 1e-4 and 1e-2 as measured.
    assert 0 < found.divergence.kl_divergence.value < 0.01
    assert 0 < 1 - found.vision.cosine.value < 0.001
    assert 0 < found.vision.relative_l2.value < 0.1
    parts = {each.part: each.kl_divergence.value for each in found.damage}
    assert parts.keys() == {"language_model", "other_parts"}
    assert all(0 < value < 0.01 for value in parts.values())
    assert [(each.picture, each.question) for each in found.answers] == [
        ("seen/one.png", QUESTION),
        ("seen/two.png", QUESTION),
    ]
    assert all(each.text and each.reference for each in found.answers)
    (check,) = looked.checks
    assert (check.name, check.passed) == ("answers_about_pictures", True)
    # A random model may well repeat itself; no more than its original.
    assert int(check.value[0]) <= int(check.detail.split()[1])


def test_a_model_is_as_good_as_itself(loaded: llmcompress.LoadedModel, own: Path) -> None:
    how = Looking(read_pictures(str(own)), "CPU", exact(), 0.95)
    found = look(loaded, loaded, how, lambda progress: None).record
    assert found is not None
    assert found.divergence is not None
    assert found.vision is not None
    assert (found.divergence.kl_divergence.value, found.divergence.top1_agreement.value) == (0.0, 1.0)
    assert (found.vision.cosine.value, found.vision.relative_l2.value) == (pytest.approx(1.0), 0.0)
    assert [each.text for each in found.answers] == [each.reference for each in found.answers]
    alone = look(loaded, None, how, lambda progress: None)
    assert alone.record is not None
    assert alone.record.divergence is None
    assert [each.text for each in alone.record.answers] == [each.text for each in found.answers]


def test_reports_cards_and_comparisons_show_it(
    looked: Looked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert looked.record is not None
    assert looked.record.divergence is not None
    made = write_model(tmp_path / "model")
    report = write_evaluation(made, 10.0, kl=0.01, reference=made, pictures=looked.record)
    figure = interval_text(looked.record.divergence.kl_divergence)
    print_evaluation(report, source="model", stages=False)
    printed = capsys.readouterr().out
    assert re.search(rf"KL divergence, nats \(64 tokens of its answers\) +{re.escape(figure)}", printed)
    assert "the language model alone" in printed
    card = llmcompress.render_card(made)
    assert f"| KL divergence of answers about pictures, nats per token |  | {figure} |" in card
    assert "`questions.jsonl`: 2 questions, 64 tokens of the original's answers" in card
    other = write_model(tmp_path / "other")
    write_evaluation(other, 10.0, kl=0.01, reference=made)
    table = {line.title: line.texts for line in lines(llmcompress.compare([made, other]))}
    short = interval_text(looked.record.divergence.kl_divergence, ".3g")
    assert table["KL divergence about pictures"] == (short, "not measured")
    changed = looked.record.model_copy(update={"sha256": "0" * 64})
    write_evaluation(other, 10.0, kl=0.01, reference=made, pictures=changed)
    table = {line.title: line.texts for line in lines(llmcompress.compare([made, other]))}
    assert table["KL divergence about pictures"][1] == f"{short} [questions.jsonl 00000000]"


def test_a_gate_holds_the_answers_below_a_limit(looked: Looked) -> None:
    assert looked.record is not None
    assert looked.record.divergence is not None
    lost = looked.record.divergence.kl_divergence.value
    for limit, passed in ((lost, True), (lost / 2, False)):
        (check,) = picture_checks(Gate(max_picture_kl=limit), looked.record)
        assert (check.name, check.passed, check.value, check.required) == ("max_picture_kl", passed, lost, limit)
    without = looked.record.model_copy(update={"divergence": None})
    for found, why in ((None, "it was not asked about pictures"), (without, "no --reference was given")):
        (check,) = picture_checks(Gate(max_picture_kl=1.0), found)
        assert (check.passed, check.detail) == (None, why)
        assert gate_record([check]).status == "not_judged"
    assert picture_checks(Gate(max_kl=1.0), looked.record) == ()
    # Of text the limit says nothing.
    assert [check.name for check in threshold_checks(Gate(max_kl=1.0, max_picture_kl=1.0), None)] == ["max_kl"]


def test_a_model_that_cannot_be_asked_is_measured_on(
    loaded: llmcompress.LoadedModel, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = Looking(read_pictures(str(own)), "CPU", exact(), 0.95)
    broken = dataclasses.replace(loaded, parts={**loaded.parts, "vision_embeddings_model": loaded.model})
    found = look_where_it_runs(broken, None, how, lambda progress: None, offline=True)
    assert found.record is None
    assert found.refusal is not None
    assert found.refusal.startswith("it cannot be asked about a picture: ")
    assert "it is shown no pictures: it cannot be" in caplog.text
    two = dataclasses.replace(loaded, source=loaded.source._replace(path=own.parent))
    with pytest.raises(ModelError, match="its processor cannot be opened"):
        open_sight(two, "CPU", {})


def test_it_goes_to_the_hub_and_comes_back_whole(
    looked: Looked, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(int8, tmp_path / "model")
    write_report(model, "eval.json", evaluation(model).model_copy(update={"pictures": looked.record}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(FakeHub()) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        report = llmcompress.push_to_hub(model, "acme/model")
        assert {f"openvino_{part}.bin" for part in ("language_model", *PARTS)} <= {file.path for file in report.files}
        page = held(server.repos["acme/model"])["README.md"].decode()
        assert "pipeline_tag: image-text-to-text" in page
        assert 'openvino_genai.VLMPipeline(snapshot_download("acme/model"), "CPU")' in page
        assert "KL divergence of answers about pictures" in page
        back = fetch_weights(resolve("acme/model", vision=True))
        assert back.sees
        assert llmcompress.verify(back.path).ok
        assert llmcompress.load(back, tokenizer=False).parts.keys() == set(PARTS)
        open_processor(back.path)


def test_two_models_that_read_a_question_otherwise_are_not_compared(
    loaded: llmcompress.LoadedModel, own: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "copied")
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").write_text(f"Look: {template}")
    other = dataclasses.replace(loaded, source=loaded.source._replace(path=copied))
    how = Looking(read_pictures(str(own)), "CPU", exact(), 0.95)
    with pytest.raises(ModelError, match="reads a question and a picture as other tokens than the reference's"):
        look(other, loaded, how, lambda progress: None)


def test_pictures_that_cannot_be_read_are_named(own: Path, tmp_path: Path) -> None:
    (tmp_path / "none.png").write_text("none")
    rows: dict[str, Any] = {
        "no field 'image', there are: 'question'": {"question": QUESTION},
        "question is None; a text is needed": {"image": "none.png"},
        "the picture 'none.png' cannot be read: cannot identify image file": {"image": "none.png", "question": "?"},
        "the picture 'gone.png' cannot be read": {"image": "gone.png", "question": "?"},
        "the field 'image' holds no picture": {"image": 7, "question": "?"},
    }
    for said, row in rows.items():
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row))
        with pytest.raises(DataError, match=said) as caught:
            read_pictures(str(file))
        assert caught.value.where.startswith("rows.jsonl: line 1")
    with pytest.raises(ValueError, match=r"got 'cat\.png'; bundled, none or a \.jsonl file is accepted"):
        llmcompress.EvalSpec(pictures="cat.png")


@pytest.fixture
def of_the_hub(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dataset of a Hub, pinned: two pictures in a column, their questions, and a number."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    files = sorted((own.parent / "seen").glob("*.png"))
    rows = pyarrow.table(
        {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "question": [f"What is in {file.stem}?" for file in files],
            "id": list(range(len(files))),
        }
    )
    kinds = {"image": {"_type": "Image"}, "question": {"dtype": "string", "_type": "Value"}}
    info = {"info": {"features": {**kinds, "id": {"dtype": "int64", "_type": "Value"}}}}
    written = BytesIO()
    parquet.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(info)}), written)
    (own.parent / "rows.parquet").write_bytes(written.getvalue())
    with running(FakeHub()) as server:
        server.repos["acme/pictures"] = new_repo({"train.parquet": written.getvalue(), "README.md": b"none"})
        use(server.url, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield f"acme/pictures@{server.repos['acme/pictures'].head.sha}"


def test_pictures_come_from_a_dataset_of_the_hub(of_the_hub: str, own: Path) -> None:
    seen = {name: Image.open(own.parent / "seen" / f"{name}.png").convert("RGB").tobytes() for name in ("one", "two")}
    expected = [(f"What is in {name}?", seen[name]) for name in ("one", "two")]
    for rows in (f"{of_the_hub}:train", str(own.parent / "rows.parquet")):
        assert llmcompress.EvalSpec(pictures=rows).pictures == rows
        found = read_pictures(rows)
        assert [(each.question, each.picture.tobytes()) for each in found.questions] == expected
        assert [each.name for each in found.questions] == ["row 1", "row 2"]
    assert llmcompress.EvalSpec(pictures=f"{of_the_hub}:train").pictures_name == f"{of_the_hub}:train"
    assert llmcompress.EvalSpec(pictures=rows).pictures_name == "rows.parquet"
    first = read_pictures(f"{of_the_hub}:train[:1]", offline=True)
    assert [each.question for each in first.questions] == ["What is in one?"]
    fields = {"text_field": "question", "image_field": "image"}
    shown = picture_pairs(Calibration.model_validate({"dataset": of_the_hub, "split": "train", **fields}), offline=True)
    assert sorted((pair.text, pair.picture.tobytes()) for pair in shown) == sorted(expected)
    with pytest.raises(DataError, match='Unknown split "test"'):
        read_pictures(f"{of_the_hub}:test")
    with pytest.raises(ValueError, match=r"and a \.parquet file or namespace/name@COMMIT:SPLIT of the Hub"):
        llmcompress.EvalSpec(pictures="acme/pictures@main:train")


def test_a_text_model_is_shown_none(demo_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="`pictures` are shown to vision-language models, this is a text model"):
        llmcompress.evaluate(demo_checkpoint, llmcompress.EvalSpec(pictures="bundled"))


@pytest.mark.slow
def test_an_artifact_is_asked_about_pictures_when_it_is_evaluated(int8: Path, checkpoint: Path, own: Path) -> None:
    text = own.with_name("text.txt")
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    spec = llmcompress.EvalSpec(dataset=str(text), seq_len=64, num_windows=4, pictures=str(own))
    report = llmcompress.evaluate(int8, spec, reference=checkpoint)
    assert report.pictures is not None
    assert report.pictures.divergence is not None
    assert 0 < report.pictures.divergence.kl_divergence.value < 0.01
    assert report.spec.pictures == "questions.jsonl"
    assert "answers_about_pictures" in {check.name for check in report.gate.checks}
    assert json.loads((int8 / "eval.json").read_text())["pictures"]["num_questions"] == 2
    none = llmcompress.evaluate(int8, spec.model_copy(update={"pictures": "none"}))
    assert (none.pictures, none.pictures_refusal) == (None, None)
