"""The gate's judgement, the smoke probes, and chat templates without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcompress.data.tokens import TextEncoder
from llmcompress.evaluation.conversation import ChatTemplate, chat_template, question_ids
from llmcompress.evaluation.gate import (
    EARLIER,
    carried,
    combined,
    finite_check,
    gate_record,
    picture_checks,
    threshold_checks,
    verdict,
    worst_checks,
    worst_verdict,
)
from llmcompress.evaluation.generations import first_difference
from llmcompress.evaluation.probes import LOOP_TOKENS, Answers, answer_checks, is_loop
from llmcompress.graph.decoding import Generation
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import Check, DivergenceRecord, GateRecord, PictureRecord
from llmcompress.spec import EvalSpec, Gate


def estimate(value: float) -> Estimate:
    return Estimate(value=value, standard_error=0.0, low=value, high=value)


def measured(kl: float = 0.01, *, agreement: float = 0.9, ratio: float = 1.02, exact: bool = True) -> DivergenceRecord:
    return DivergenceRecord(
        exact=exact,
        top_k=None if exact else 64,
        kl_divergence=estimate(kl),
        kl_median=0,
        kl_p90=0,
        kl_p99=0,
        kl_p999=0,
        kl_max=0,
        top1_agreement=estimate(agreement),
        log_perplexity_change=estimate(0),
        perplexity_ratio=estimate(ratio),
        rms_probability_change=0,
    )


GATE = Gate(max_kl=0.02, min_top1_agreement=0.8, max_perplexity_increase=0.05)


@pytest.mark.parametrize(
    ("divergence", "failed"),
    [
        (measured(), set()),
        (measured(kl=0.021), {"max_kl"}),
        (measured(kl=float("nan")), {"max_kl"}),
        (measured(agreement=0.79), {"min_top1_agreement"}),
        (measured(ratio=1.051), {"max_perplexity_increase"}),
    ],
)
def test_thresholds(divergence: DivergenceRecord, failed: set[str]) -> None:
    record = gate_record(threshold_checks(GATE, divergence))
    assert {check.name for check in record.checks if check.passed is False} == failed
    assert record.passed is (not failed)


def test_what_was_not_measured_does_not_pass() -> None:
    record = gate_record(threshold_checks(GATE, None))
    assert record.passed is None
    assert {check.detail for check in record.checks} == {"no --reference was given"}
    bound = gate_record(threshold_checks(GATE, measured(exact=False)))
    assert bound.passed is None
    assert bound.checks[0].detail == "only a lower bound was measured; take --reference-scores exact or rounded"
    assert gate_record(threshold_checks(GATE, measured(kl=0.03, exact=False))).passed is False
    assert bound.status == record.status == "not_judged"


def test_a_value_at_its_limit_passes() -> None:
    checks = threshold_checks(GATE, measured(kl=0.02, agreement=0.8, ratio=1.0))
    assert [(check.name, check.passed, check.value, check.required) for check in checks] == [
        ("max_kl", True, 0.02, 0.02),
        ("min_top1_agreement", True, 0.8, 0.8),
        ("max_perplexity_increase", True, 0.0, 0.05),
    ]
    assert {check.detail for check in checks} == {""}
    # Only a divergence is bounded: the others are exact, and what failed by a bound has failed.
    bound = threshold_checks(GATE, measured(kl=0.03, exact=False))
    assert [(check.passed, check.detail) for check in bound] == [(False, ""), (True, ""), (True, "")]


def pictures(kl: float | None) -> PictureRecord:
    lost = None if kl is None else measured(kl=kl)
    return PictureRecord(
        dataset="bundled", sha256="0" * 64, num_questions=1, num_scored_tokens=1, divergence=lost, answers=()
    )


@pytest.mark.parametrize(
    ("found", "passed", "value", "detail"),
    [
        (pictures(0.02), True, 0.02, ""),
        (pictures(0.0), True, 0.0, ""),
        (pictures(0.021), False, 0.021, ""),
        (pictures(None), None, None, "no --reference was given"),
        (None, None, None, "it was not asked about pictures"),
    ],
)
def test_pictures_are_judged_by_their_own_threshold(
    found: PictureRecord | None, passed: bool | None, value: float | None, detail: str
) -> None:
    (check,) = picture_checks(Gate(max_picture_kl=0.02), found)
    assert check == Check(name="max_picture_kl", passed=passed, value=value, required=0.02, detail=detail)
    assert picture_checks(GATE, found) == ()
    (beyond,) = picture_checks(Gate(max_picture_kl=0.02), pictures(float("nan")))
    assert beyond.passed is False
    assert threshold_checks(Gate(max_picture_kl=0.02), measured()) == ()


def test_of_two_graphs_the_worse_one_counts() -> None:
    gate = Gate(max_kl=0.02, min_top1_agreement=0.8)
    found = worst_checks(
        gate, {"stateful": measured(kl=0.015, agreement=0.9), "paged": measured(kl=0.01, agreement=0.85)}
    )
    assert [(check.name, check.value, check.detail) for check in found] == [
        ("max_kl", 0.015, "the stateful graph; paged 0.01"),
        ("min_top1_agreement", 0.85, "the paged graph; stateful 0.9"),
    ]
    (failed, _) = worst_checks(gate, {"stateful": measured(kl=0.01, exact=False), "paged": measured(kl=0.03)})
    assert (failed.passed, failed.value) == (False, 0.03)
    # Not judged is worse than passed, and says why.
    bound, other = measured(kl=0.001, exact=False), measured(kl=0.015)
    (open_one, _) = worst_checks(gate, {"stateful": other, "paged": bound})
    assert (open_one.passed, open_one.value) == (None, 0.001)
    assert open_one.detail == "only a lower bound was measured; take --reference-scores exact or rounded"
    assert worst_checks(gate, {"paged": other}) == threshold_checks(gate, other)
    assert worst_checks(gate, {}) == threshold_checks(gate, None)


def test_the_least_favourable_verdict_counts() -> None:
    assert worst_verdict(["cannot tell", "equivalent"]) == "cannot tell"
    assert worst_verdict(["equivalent", "worse", "cannot tell"]) == "worse"
    assert worst_verdict([]) is None


def interval(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, standard_error=0.0, low=low, high=high)


@pytest.mark.parametrize(
    ("kl", "change", "exact", "expected"),
    [
        (interval(0.001, 0.004), interval(-0.001, 0.001), True, "equivalent"),
        (interval(0.001, 0.004), interval(-0.001, 0.001), False, "cannot tell"),
        (interval(0.1, 0.2), interval(-0.001, 0.001), True, "worse"),
        (interval(0.1, 0.2), interval(-0.001, 0.001), False, "worse"),
        (interval(0.001, 0.2), interval(-0.001, 0.001), True, "cannot tell"),
    ],
)
def test_verdicts_by_the_specs_margins(kl: Estimate, change: Estimate, exact: bool, expected: str) -> None:
    spec = EvalSpec(dataset="text.txt", kl_margin=0.005, perplexity_margin=0.02)
    found = measured(exact=exact).model_copy(update={"kl_divergence": kl, "log_perplexity_change": change})
    assert verdict(found, spec) == expected
    if expected == "equivalent":
        # The margins are not taken for each other.
        beside = found.model_copy(update={"kl_divergence": interval(0.006, 0.01), "log_perplexity_change": change})
        assert verdict(beside, spec) == "worse"
        wide = found.model_copy(update={"log_perplexity_change": interval(-0.01, 0.01)})
        assert verdict(wide, spec) == "equivalent"


def test_every_token_has_to_have_a_probability() -> None:
    assert finite_check(0, 8) == Check(
        name="finite_scores", passed=True, value="0 of 8 tokens NaN or infinite", required="none"
    )
    assert finite_check(1, 8).passed is False


def test_without_thresholds_nothing_is_passed_and_a_failed_probe_still_fails() -> None:
    open_probe = Check(name="stops_at_eos", passed=None, value=None, required="")
    fine, failed = (Check(name="finite_scores", passed=passed, value="", required="") for passed in (True, False))
    for checks in ([], [open_probe], [open_probe, fine]):
        assert (gate_record(checks).status, gate_record(checks).passed) == ("no_thresholds", None)
    assert (gate_record([fine, failed]).status, gate_record([fine, failed]).passed) == ("failed", False)
    met = gate_record([*threshold_checks(GATE, measured()), open_probe])
    assert (met.status, met.passed) == ("passed", True)


@pytest.mark.parametrize(
    ("earlier", "status", "passed"),
    [
        ({"passed": True, "checks": [{"name": "finite_scores", "passed": True, "value": "", "required": ""}]},
         "no_thresholds", None),
        ({"passed": True, "checks": [{"name": "max_kl", "passed": True, "value": 0.1, "required": 1.0}]},
         "passed", True),
        ({"passed": False, "checks": []}, "failed", False),
        ({"passed": None, "checks": []}, "not_judged", None),
    ],
)  # fmt: skip
def test_reports_of_earlier_versions_are_read(earlier: dict[str, Any], status: str, passed: bool | None) -> None:
    record = GateRecord.model_validate(earlier)
    assert (record.status, record.passed) == (status, passed)
    assert GateRecord.model_validate_json(record.model_dump_json()) == record


def test_a_failed_check_stays_until_it_is_made_again() -> None:
    failed = gate_record(threshold_checks(GATE, measured(kl=0.5)))
    alone = gate_record([Check(name="finite_scores", passed=True, value="", required="")])
    both = carried(failed, alone)
    assert both.passed is False
    assert {check.name: check.detail for check in both.checks}["max_kl"] == EARLIER
    assert carried(failed, gate_record(threshold_checks(GATE, None))).passed is False
    assert carried(failed, gate_record(threshold_checks(GATE, measured()))).passed is True
    # What passed once, perhaps under another threshold, is not passed now.
    passed = gate_record(threshold_checks(GATE, measured()))
    assert carried(passed, gate_record(threshold_checks(GATE, None))).passed is None
    # A check that was made again takes the earlier one's place, and none is there twice.
    assert [check.name for check in both.checks] == ["max_kl", "finite_scores"]
    again = carried(failed, gate_record(threshold_checks(GATE, None)))
    assert [check.name for check in again.checks] == ["max_kl", "min_top1_agreement", "max_perplexity_increase"]
    assert [check.passed for check in again.checks] == [False, None, None]


def test_a_runs_thresholds_go_before_the_recipes() -> None:
    both = combined(Gate(max_kl=0.5, min_top1_agreement=0.5), Gate(max_kl=0.1))
    assert both == Gate(max_kl=0.1, min_top1_agreement=0.5)
    assert combined(None, Gate()) == Gate()


def answers(*generations: tuple[int, bool]) -> Answers:
    """Each of so many tokens, different or (negative) the same, stopped or not."""
    return Answers(tuple(Generation(tuple(range(n)) if n >= 0 else (5,) * -n, stopped) for n, stopped in generations))


@pytest.mark.parametrize(
    ("candidate", "reference", "stops", "no_loop"),
    [
        (answers((9, True), (9, False)), None, True, True),
        (answers((9, False)), None, None, True),
        (answers((9, False)), answers((9, True)), False, True),
        (answers((9, False)), answers((9, False)), True, True),
        (answers((-20, False)), None, None, False),
        (answers((-20, False)), answers((9, False)), True, False),
        (answers((-20, False)), answers((-20, False)), True, True),
        (None, None, None, None),
    ],
)
def test_answers(candidate: Any, reference: Any, stops: bool | None, no_loop: bool | None) -> None:
    assert [check.passed for check in answer_checks(candidate, reference)] == [stops, no_loop]


def test_a_loop_is_one_token_again_and_again() -> None:
    assert is_loop([1, 2, *[3] * LOOP_TOKENS])
    assert not is_loop([*[3] * (LOOP_TOKENS - 1), 4])
    assert not is_loop([3] * (LOOP_TOKENS - 1))
    assert not is_loop([1, 2] * LOOP_TOKENS)


def test_the_first_difference() -> None:
    assert first_difference((1, 2, 3), (1, 2, 3)) is None
    assert first_difference((1, 2, 3), (1, 9, 3)) == 1


@pytest.mark.parametrize("name", ["ref_model", "demo_checkpoint"])
def test_templates_render_as_transformers_does(name: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    model = request.getfixturevalue(name)
    template, tokenizer = chat_template(model), AutoTokenizer.from_pretrained(model)
    assert template is not None
    conversation = [{"role": "user", "content": 'A "question"? <b>\n'}, {"role": "assistant", "content": " yes "}]
    for prompt in (True, False):
        expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
        assert template.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt) == expected


ODD = (
    "{%- for m in messages %}\n  {%- if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\n"
    "    {% if loop.index == 2 %}{% break %}{% endif %}\n{{ bos_token }}{{ m | tojson }}|\n{%- endfor %}\n"
    "{% if strftime_now('%Y') | length == 4 %}y{% endif %}{{ tools is none }}"
)


def test_an_odd_template_renders_as_transformers_does(ref_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ref_model)
    tokenizer.chat_template = ODD
    template = ChatTemplate(ODD, {"bos_token": tokenizer.bos_token})
    conversation = [{"role": "user", "content": "<é & '>"}, {"role": "user", "content": "x"}]
    expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert template.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True) == expected


def test_where_the_template_stands(tmp_path: Path) -> None:
    encoder = TextEncoder(lambda texts, special: [[len(text)] for text in texts], tmp_path)
    assert chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "abc"}]}')
    found = chat_template(tmp_path)
    assert found is not None
    assert question_ids(found, encoder, "?") == [3]
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}{{ messages[0].content }}")
    config.write_text('{"eos_token": {"content": "</s>"}}')
    found = chat_template(tmp_path)
    assert found is not None
    assert question_ids(found, encoder, "12") == [6]
    refusing = ChatTemplate("{{ raise_exception('never') }}", {})
    assert question_ids(refusing, encoder, "?") is None
