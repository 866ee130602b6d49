"""Pushing through the real huggingface_hub client to a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub, Fault, account, download, new_repo, running, sha256, use
from push_fixture import (
    TOKEN,
    add_reports,
    card,
    commits,
    evaluation,
    files_of,
    held,
    make_artifact,
    make_evaluated,
    model_of,
    pushed,
    tuning,
)

from llmcompress.artifact import read_measurements, replace_report, verify, write_report
from llmcompress.cli import run
from llmcompress.errors import ArtifactError, GateError, HubError, SecurityError, UsageError
from llmcompress.publishing.gate import objection
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import Check, TaskScore
from llmcompress.spec import Gate
from llmcompress.system.progress import Progress

MODEL = "acme/model"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.25)
    monkeypatch.setattr("llmcompress.hub.client._ANSWER_TO_A_WRITE_S", 0.25)
    with running(FakeHub()) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return add_reports(make_artifact(tmp_path / "model-none-ov"))


def test_a_new_repository_gets_everything_in_one_commit(fake: FakeHub, model: Path) -> None:
    seen: list[Progress] = []
    report = pushed(model, progress=seen.append)
    assert commits(fake, MODEL) == 2
    assert held(fake.repos[MODEL]) == model_of(model)
    assert (model / "README.md").read_text() == card(model, None)
    assert report.commit == fake.repos[MODEL].refs["main"]
    assert (report.created, report.dry_run, report.forced) == (True, False, None)
    assert report.commit_url == f"{fake.url}/{MODEL}/commit/{report.commit}"
    assert {file.path for file in report.files} == set(files_of(model))
    assert {file.state for file in report.files} == {"new"}
    assert report.sent_bytes == sum(map(len, model_of(model).values()))
    assert seen[-1].stage == "upload"
    assert fake.uploads == [sha256((model / "openvino_model.bin").read_bytes())]
    assert fake.repos[MODEL].head.files[".gitattributes"]


def test_a_rerun_sends_nothing_and_commits_nothing(fake: FakeHub, model: Path) -> None:
    first = pushed(model)
    fake.requests.clear()
    again = pushed(model)
    assert commits(fake, MODEL) == 2
    assert (again.commit, again.created, again.sent_bytes) == (None, False, 0)
    assert {file.state for file in again.files} == {"unchanged"}
    assert not [request for request in fake.requests if request[0] != "GET"]
    assert len(fake.uploads) == 1
    assert first.files != again.files


def test_only_what_changed_is_sent(fake: FakeHub, model: Path) -> None:
    pushed(model)
    (model / "bench.json").unlink()
    (model / "eval.json").write_bytes((model / "eval.json").read_bytes() + b"\n")
    report = pushed(model)
    assert [file.path for file in report.files if file.state != "unchanged"] == ["eval.json"]
    # Of the same bytes, so it stays.
    assert report.kept == ("bench.json",)
    assert commits(fake, MODEL) == 3
    assert len(fake.uploads) == 1


def test_files_of_others_stay_unless_asked(fake: FakeHub, model: Path) -> None:
    fake.repos[MODEL] = new_repo({"notes.md": b"mine", "sub/x.bin": b"other"})
    report = pushed(model)
    assert report.kept == ("notes.md", "sub/x.bin")
    assert held(fake.repos[MODEL]) == {**model_of(model), "notes.md": b"mine", "sub/x.bin": b"other"}
    report = pushed(model, delete_others=True)
    assert report.deleted == ("notes.md", "sub/x.bin")
    assert held(fake.repos[MODEL]) == model_of(model)
    assert ".gitattributes" in fake.repos[MODEL].head.files


def test_what_an_earlier_push_left_goes_with_it(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos[MODEL] = new_repo({"notes.md": b"mine"})
    pushed(add_reports(make_artifact(tmp_path / "old", more={"extra.json": b"{}"})))
    report = pushed(make_evaluated(tmp_path / "new", seed=2))
    assert report.deleted == ("bench.json", "extra.json")
    assert held(fake.repos[MODEL]) == {**model_of(tmp_path / "new"), "notes.md": b"mine"}


def test_large_files_in_parts_and_to_another_host_without_the_token(fake: FakeHub, tmp_path: Path) -> None:
    fake.multipart_bytes = 30_000
    seen: list[Progress] = []
    model = make_evaluated(tmp_path / "model", size=100_000)
    pushed(model, progress=seen.append)
    assert held(fake.repos[MODEL]) == model_of(model)
    assert len(fake.asked("/lfs/part/")) == 4
    sent = zip(fake.requests, fake.hosts, fake.authorizations, strict=True)
    assert {authorization for _, host, authorization in sent if host.startswith("localhost")} == {None}
    assert {a for h, a in zip(fake.hosts, fake.authorizations, strict=True) if not h.startswith("localhost")} == {
        f"Bearer {TOKEN}"
    }
    assert [step.done for step in seen if step.stage == "upload"] == sorted(
        step.done for step in seen if step.stage == "upload"
    )


def test_a_dry_run_sends_nothing(fake: FakeHub, model: Path) -> None:
    before = files_of(model)
    report = pushed(model, dry_run=True)
    assert (report.dry_run, report.created, report.commit) == (True, True, None)
    assert report.card == card(model, MODEL)
    assert {file.path for file in report.files} == {*before, "README.md"}
    assert MODEL not in fake.repos
    assert not [request for request in fake.requests if request[0] != "GET"]
    assert files_of(model) == before


def test_private_or_not(fake: FakeHub, model: Path) -> None:
    assert pushed(model, private=True).private is True
    assert fake.repos[MODEL].private
    assert pushed(model, private=True).commit is None
    with pytest.raises(UsageError, match="the repository is there and private; a push does not change that"):
        pushed(model, private=False)


@pytest.mark.parametrize(
    ("given", "source", "name"),
    [
        (None, None, "acme/model-none-ov"),
        (None, "meta/Llama-3", "acme/Llama-3-none-ov"),
        ("other", None, "acme/other"),
        ("team/x", None, "team/x"),
    ],
)
def test_the_name_of_the_repository(
    fake: FakeHub, model: Path, given: str | None, source: str | None, name: str
) -> None:
    fake.account = account(orgs={"team": "write"})
    path = model / "llmcompress.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["id"] = source
    path.write_text(json.dumps(manifest))
    write_report(model, "eval.json", evaluation(model))
    assert pushed(model, given, dry_run=True).repo_id == name


def test_a_directory_whose_name_names_no_repository(fake: FakeHub, tmp_path: Path) -> None:
    model = make_evaluated(tmp_path / "mein modell")
    with pytest.raises(UsageError, match="'mein modell-none-ov' cannot be the name of a repository"):
        pushed(model, None)
    with pytest.raises(UsageError, match="neither an existing path nor a Hub id"):
        pushed(model, "../x")


def test_a_directory_that_is_not_what_its_manifest_says(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    (model / ".env").write_text("SECRET=1")
    with pytest.raises(ArtifactError, match=r"\.env: is not in the manifest") as caught:
        pushed(model)
    assert caught.value.exit_code == 4
    with pytest.raises(ArtifactError, match="is no llmcompress artifact"):
        pushed(tmp_path)
    assert fake.requests == []


def test_the_notes_of_huggingface_hub_do_not_leave(fake: FakeHub, model: Path) -> None:
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "x.metadata").write_text("notes")
    pushed(model)
    assert not [name for name in fake.repos[MODEL].head.files if ".cache" in name]


GATE = Gate(max_kl=0.01, min_top1_agreement=0.9)
PASSED = (
    Check(name="max_kl", passed=True, value=0.005, required=0.01),
    Check(name="min_top1_agreement", passed=True, value=0.95, required=0.9),
)


@pytest.mark.parametrize(
    ("passed", "checks", "message"),
    [
        (
            False,
            (Check(name="max_kl", passed=False, value=0.5, required=0.01),),
            r"the gate is not passed: max_kl: 0\.5",
        ),
        (None, (PASSED[0],), r"not judged in full: min_top1_agreement 0\.9"),
        (True, (PASSED[0].model_copy(update={"required": 10.0}), PASSED[1]), r"not judged in full: max_kl 0\.01"),
        (True, (PASSED[0], PASSED[1].model_copy(update={"required": 0.1})), "not judged in full: min_top1"),
        (True, (PASSED[0], PASSED[1].model_copy(update={"passed": None})), "not judged in full: min_top1"),
    ],
)
def test_a_gate_that_is_not_passed(
    fake: FakeHub, tmp_path: Path, passed: bool | None, checks: tuple[Check, ...], message: str
) -> None:
    model = make_artifact(tmp_path / "model", gate=GATE)
    write_report(model, "eval.json", evaluation(model, passed, *checks))
    with pytest.raises(GateError, match=message) as caught:
        pushed(model)
    assert caught.value.exit_code == 7
    assert fake.requests == []
    report = pushed(model, force=True)
    assert report.forced is not None
    # The verdict leaves with the model.
    assert fake.repos[MODEL].head.files["eval.json"] == (model / "eval.json").read_bytes()


def test_a_gate_that_was_not_judged(fake: FakeHub, tmp_path: Path) -> None:
    model = make_artifact(tmp_path / "model", gate=GATE)
    with pytest.raises(GateError, match=r"gate \(max_kl 0\.01, min_top1_agreement 0\.9\) was not judged") as caught:
        pushed(model)
    assert "llmcompress eval" in caught.value.hint
    write_report(model, "eval.json", evaluation(model, True, *PASSED, digest="0" * 64))
    with pytest.raises(GateError, match=r"eval\.json is not used: it was measured on other bytes"):
        pushed(model)
    write_report(model, "eval.json", evaluation(model, True, *PASSED))
    assert pushed(model).forced is None


def lost(directory: Path, kl: float, ratio: float, *checks: Check, exact: bool = True) -> None:
    """Put a report into an artifact, of an evaluation without thresholds."""
    report = evaluation(directory, True, *checks)
    assert report.divergence is not None
    found = report.divergence.model_copy(
        update={
            "exact": exact,
            "kl_divergence": Estimate(value=kl, standard_error=None, low=None, high=None),
            "perplexity_ratio": Estimate(value=ratio, standard_error=None, low=None, high=None),
        }
    )
    write_report(directory, "eval.json", report.model_copy(update={"divergence": found}))


def test_without_thresholds_a_push_has_its_own(fake: FakeHub, tmp_path: Path) -> None:
    model = make_artifact(tmp_path / "model")
    probe = Check(name="no_token_loop", passed=False, value="2 of 3", required="no answer ends in a loop")
    for put, message in (
        (lambda: None, r"model: it was never evaluated"),
        (lambda: lost(model, 0.1001, 1.0), r"no thresholds are set.*: max_kl: 0\.1001, required 0\.1"),
        (lambda: lost(model, 0.01, 1.11), r"more than a push accepts: max_perplexity_increase: 0\.11, required 0\.1"),
        (lambda: lost(model, 0.01, 1.0, probe), r"the gate is not passed: no_token_loop: 2 of 3"),
        (lambda: lost(model, 0.01, 1.0, exact=False), r"what a push asks for is not judged: max_kl 0\.1"),
        (lambda: write_report(model, "eval.json", evaluation(model).model_copy(update={"divergence": None})),
         r"is not judged: max_kl 0\.1, max_perplexity_increase 0\.1"),
    ):  # fmt: skip
        put()
        with pytest.raises(GateError, match=message) as caught:
            pushed(model)
        assert caught.value.exit_code == 7
        assert "`force` pushes it all the same" in caught.value.hint
    assert fake.requests == []
    lost(model, 0.0999, 1.09)
    assert pushed(model).forced is None


def test_what_the_gate_objects_to_where_no_check_failed(tmp_path: Path) -> None:
    model = make_artifact(tmp_path / "model")
    # As an earlier version wrote it.
    write_report(model, "eval.json", evaluation(model, False))
    found = objection(read_measurements(model))
    assert found is not None
    assert (found.message, "keeps more" in found.hint) == ("the gate is not passed", True)
    probe = Check(name="probe", passed=False, value=0.5, required="none")
    write_report(model, "eval.json", evaluation(model, False, probe, PASSED[0].model_copy(update={"passed": False})))
    found = objection(read_measurements(model))
    assert found is not None
    assert found.message == "the gate is not passed: probe: 0.5; max_kl: 0.005, required 0.01"
    write_report(
        model, "eval.json", evaluation(model, None, Check(name="max_kl", passed=None, value=None, required=0.5))
    )
    found = objection(read_measurements(model))
    assert found is not None
    assert found.message == "the gate is not judged in full: max_kl"
    assert "llmcompress eval" in found.hint


def test_thresholds_of_the_evaluation_stand_for_those_of_a_push(fake: FakeHub, tmp_path: Path) -> None:
    model = make_artifact(tmp_path / "model")
    lost(model, 0.5, 1.5, Check(name="max_kl", passed=True, value=0.5, required=0.6))
    assert pushed(model).forced is None


def test_a_push_that_was_forced_says_so_on_the_card(fake: FakeHub, tmp_path: Path) -> None:
    import llmcompress

    model = make_artifact(tmp_path / "model")
    lost(model, 0.34, 1.2)
    said = (
        "**The gate objects to publishing this model: no thresholds are set, and it loses more than a push accepts: "
        r"max\_kl: 0.34, required 0.1; max\_perplexity\_increase: 0.2, required 0.1.** "
        "`llmcompress push` sends it only with `--force`."
    )
    assert said in llmcompress.push_to_hub(model, MODEL, force=True).card
    assert said in fake.repos[MODEL].head.files["README.md"].decode()
    lost(model, 0.03, 1.02)
    assert "The gate objects" not in llmcompress.render_card(model)


def test_the_command_line_refuses_and_is_forced(
    fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_artifact(tmp_path / "model")
    assert run(["push", str(model), MODEL]) == 7
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {model}: it was never evaluated"
    assert hint == "hint: llmcompress eval DIR --reference ORIGINAL judges it; --force pushes it all the same"
    assert run(["push", str(model), MODEL, "--force"]) == 0
    assert "it was never evaluated" in capsys.readouterr().out


def test_reports_of_other_bytes_stay_by_name(fake: FakeHub, model: Path) -> None:
    write_report(model, "eval.json", evaluation(model, digest="0" * 64))
    (model / "bench.json").write_text("[]")
    (model / "tune.json").write_text('{"manifest_sha256": "other", "private": true}')
    report = pushed(model, force=True)
    assert set(report.left_out) == {"eval.json", "bench.json", "tune.json"}
    assert "other bytes" in report.left_out["eval.json"]
    assert not set(report.left_out) & set(fake.repos[MODEL].head.files)
    write_report(model, "tune.json", tuning(model))
    assert "tune.json" not in pushed(model, force=True).left_out


def test_a_token_never_leaves(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    held_elsewhere = make_evaluated(tmp_path / "other", more={"config.json": b'{"t": "hf_' + b"a" * 34 + b'"}'})
    with pytest.raises(SecurityError, match=r"config\.json: it holds an access token"):
        pushed(held_elsewhere)
    replace_report(model, "README.md", f"my {TOKEN}".encode())
    with pytest.raises(SecurityError, match=r"README\.md: it holds an access token"):
        pushed(model, keep_card=True)
    assert fake.repos == {}


def test_offline_nothing_is_pushed(fake: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="this run is offline"):
        pushed(model)
    assert fake.requests == []


def test_an_offline_look_at_the_hub_names_the_variable_and_no_option(
    fake: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        pushed(model, MODEL, dry_run=True)
    assert (caught.value.message, caught.value.hint) == (
        "this run is offline, by HF_HUB_OFFLINE",
        "unset it to reach the Hub",
    )
    assert fake.requests == []


def test_the_card_is_the_current_one(fake: FakeHub, model: Path) -> None:
    replace_report(model, "README.md", card(model, None).replace("\n", "\r\n").encode())
    pushed(model)
    assert fake.repos[MODEL].head.files["README.md"] == card(model, MODEL).encode()
    replace_report(model, "README.md", b"# mine\r\n")
    with pytest.raises(UsageError, match=r"README\.md: is not the card that the manifest and the reports give now"):
        pushed(model)
    pushed(model, keep_card=True)
    assert fake.repos[MODEL].head.files["README.md"] == b"# mine\r\n"
    replace_report(model, "README.md", b"\xff")
    with pytest.raises(UsageError, match="is no text in UTF-8"):
        pushed(model)
    (model / "README.md").unlink()
    with pytest.raises(UsageError, match=r"there is no README\.md to keep"):
        pushed(model, keep_card=True)


def with_tasks(directory: Path, *scores: tuple[str, str, float, int | None]) -> Path:
    tasks = tuple(
        TaskScore(task=task, metric=metric, value=value, standard_error=None, num_samples=samples, version="3.0")
        for task, metric, value, samples in scores
    )
    write_report(directory, "eval.json", evaluation(directory).model_copy(update={"tasks": tasks}))
    return directory


def test_scores_of_the_hubs_benchmarks_go_where_its_leaderboards_read_them(
    fake: FakeHub, model: Path, tmp_path: Path
) -> None:
    from huggingface_hub import EvalResultEntry, parse_eval_result_entries

    with_tasks(
        model,
        ("gsm8k", "exact_match (strict-match)", 0.125, 1319),
        ("gsm8k", "exact_match (flexible-extract)", 0.25, 1319),
        # A group: its parts say how many questions there were.
        ("mmlu_pro", "exact_match (custom-extract)", 0.3, None),
        ("mmlu_pro_math", "exact_match (custom-extract)", 0.2, 12_000),
        ("mmlu_pro_law", "exact_match (custom-extract)", 0.4, 32),
        # A part of the questions, and a task that is no benchmark there.
        ("gpqa_diamond_zeroshot", "acc_norm", 0.5, 20),
        ("arc_easy", "acc", 0.6, 2376),
    )
    dry = pushed(model, dry_run=True)
    assert ".eval_results/gsm8k.yaml" in {file.path for file in dry.files}
    pushed(model)
    there = {name: content for name, content in fake.repos[MODEL].head.files.items() if name.startswith(".eval_")}
    assert set(there) == {".eval_results/gsm8k.yaml", ".eval_results/mmlu-pro.yaml"}
    found = [entry for content in there.values() for entry in parse_eval_result_entries(yaml.safe_load(content))]
    source = {"source_url": f"{fake.url}/{MODEL}/blob/main/eval.json", "source_name": "llmcompress eval"}
    date = evaluation(model).measured.created[:10]
    assert sorted(found, key=lambda entry: entry.dataset_id) == [
        EvalResultEntry(
            "TIGER-Lab/MMLU-Pro", "mmlu_pro", 30.0, date=date, **source,
            notes="lm-evaluation-harness mmlu_pro 3.0, exact_match (custom-extract), on CPU",
        ),
        EvalResultEntry(
            "openai/gsm8k", "gsm8k", 12.5, date=date, **source,
            notes="lm-evaluation-harness gsm8k 3.0, exact_match (strict-match), on CPU",
        ),
    ]  # fmt: skip
    # A download with them is whole, and those of other bytes leave with these bytes.
    assert run(["verify", MODEL]) == 0
    other = add_reports(make_artifact(tmp_path / "other", seed=2))
    assert set(pushed(other).deleted) == set(there)


def test_the_card_takes_base_and_license_of_a_push(fake: FakeHub, model: Path) -> None:
    from llmcompress import push_to_hub

    words = ["--base-model", "acme/Base-1B", "--license", "mit"]
    assert run(["push", str(model), MODEL, *words]) == 0
    card_there = fake.repos[MODEL].head.files["README.md"].decode()
    assert "base_model:\n- acme/Base-1B\n" in card_there
    assert "\nlicense: mit\n" in card_there
    with pytest.raises(UsageError, match=r"is not the card .*\n.*`base_model` or `license` of the card is given here"):
        push_to_hub(model, MODEL)
    with pytest.raises(
        UsageError, match="`base_model` and `license` go onto a card that is written, and this one is k"
    ):
        push_to_hub(model, MODEL, keep_card=True, license="mit")
    with pytest.raises(UsageError, match=r"`license`: got 'MIT License'; accepted: the Hub's id of a license"):
        push_to_hub(model, MODEL, license="MIT License")


def test_nobody_is_logged_in(fake: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError, match="nobody is logged in") as caught:
        pushed(model)
    assert "hf auth login" in caught.value.hint
    assert fake.requests == []


def test_a_dry_run_needs_no_login(fake: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    report = pushed(model, None, dry_run=True)
    assert report.repo_id.startswith("YOUR-ACCOUNT/")
    assert (report.created, report.commit, fake.requests) == (True, None, [])
    assert {file.path for file in report.files} == {*files_of(model), "README.md"}
    fake.repos[MODEL] = new_repo({"notes.md": b"mine"})
    before = dict(fake.repos[MODEL].head.files)
    seen = pushed(model, MODEL, dry_run=True)
    assert (seen.repo_id, seen.created, seen.kept) == (MODEL, False, ("notes.md",))
    assert fake.repos[MODEL].head.files == before


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (account(role="read"), "the token of acme may only read"),
        (account("bob"), "the account bob is no member of acme"),
        (account("bob", orgs={"acme": "read"}), "the account bob may only read in acme"),
        (account(role="fineGrained"), "has no permission to write repositories"),
        ({"name": "acme", "orgs": 7}, "another form than it documents"),
    ],
)
def test_rights_are_checked_first(fake: FakeHub, model: Path, who: dict[str, object], message: str) -> None:
    fake.account = who
    with pytest.raises(HubError, match=message) as caught:
        pushed(model)
    assert caught.value.exit_code == 5
    assert [path for _, path in fake.requests] == ["/api/whoami-v2"]


def test_a_fine_grained_token_that_may_write(fake: FakeHub, model: Path) -> None:
    fake.account = account(role="fineGrained")
    fake.account["auth"]["accessToken"]["fineGrained"] = {"scoped": [{"permissions": ["repo.write"]}]}
    assert pushed(model).commit


def test_a_token_that_is_not_valid(fake: FakeHub, model: Path) -> None:
    headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
    fake.inject(Fault("status", only="whoami", status=401, headers=headers))
    with pytest.raises(HubError, match="wants a valid access token"):
        pushed(model)


def test_a_refusal_is_not_asked_for_again(fake: FakeHub, model: Path) -> None:
    for only in ("/create", "/preupload/", "/batch", "/commit/"):
        fake.inject(Fault("status", only=only, times=-1, status=403))
        asked = len(fake.requests)
        with pytest.raises(HubError, match="may not write it, or the account's storage is full") as caught:
            pushed(model)
        assert "permissions" in caught.value.hint
        assert len([path for _, path in fake.requests[asked:] if only in path]) == 1


def test_a_pull_request(fake: FakeHub, model: Path) -> None:
    fake.repos["meta/model"] = new_repo({"notes.md": b"theirs"})
    before = fake.repos["meta/model"].head
    report = pushed(model, "meta/model", create_pr=True)
    repo = fake.repos["meta/model"]
    assert repo.head is before
    assert report.pull_request_url == f"{fake.url}/meta/model/discussions/1"
    assert repo.commits[repo.refs["refs/pr/1"]].files.items() >= model_of(model, "meta/model").items()
    again = pushed(model, "meta/model", create_pr=True)
    assert again.pull_request_url == report.pull_request_url
    assert len(repo.pulls) == 1
    with pytest.raises(HubError, match="no such repository to propose a change to"):
        pushed(model, "meta/absent", create_pr=True)
    with pytest.raises(UsageError, match="cannot be tagged"):
        pushed(model, "meta/model", create_pr=True, tags=["v1"])
    with pytest.raises(UsageError, match="goes to a repository that is there"):
        pushed(model, "meta/model", create_pr=True, private=True)


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(fake: FakeHub, model: Path) -> None:
    fake.repos["meta/model"] = new_repo()
    fake.inject(Fault("lost", only="/commit/"))
    with pytest.raises(HubError, match="broke") as caught:
        pushed(model, "meta/model", create_pr=True)
    assert "nothing is sent twice" in caught.value.hint
    assert pushed(model, "meta/model", create_pr=True).pull_request_url
    assert len(fake.repos["meta/model"].pulls) == 1


def test_branches_and_tags(fake: FakeHub, model: Path) -> None:
    with pytest.raises(HubError, match="a new one has no branch 'dev'"):
        pushed(model, revision="dev")
    fake.repos[MODEL] = new_repo()
    with pytest.raises(HubError, match="it has no revision 'dev'"):
        pushed(model, revision="dev")
    fake.repos[MODEL].refs["dev"] = fake.repos[MODEL].refs["main"]
    report = pushed(model, revision="dev", tags=["v1"])
    assert fake.repos[MODEL].tags == {"v1": report.commit}
    assert commits(fake, MODEL) == 1
    assert pushed(model, revision="dev", tags=["v1", "v2"]).commit is None
    assert set(fake.repos[MODEL].tags) == {"v1", "v2"}
    with pytest.raises(HubError, match="the tag 'v1' names another commit"):
        pushed(model, tags=["v1"])
    with pytest.raises(UsageError, match="is not a revision"):
        pushed(model, tags=["a b"])


def test_a_collection(fake: FakeHub, model: Path) -> None:
    with pytest.raises(HubError, match="there is no collection 'acme/small-1'"):
        pushed(model, collection="acme/small-1")
    assert fake.repos == {}
    fake.collections["acme/small-1"] = []
    pushed(model, collection="acme/small-1")
    pushed(model, collection="acme/small-1")
    assert fake.collections["acme/small-1"] == [MODEL]


def test_a_repository_that_was_renamed(fake: FakeHub, model: Path) -> None:
    fake.repos[MODEL] = new_repo()
    info = {"id": "acme/renamed", "sha": "1" * 40}
    fake.answer = lambda method, path: (200, {}, json.dumps(info).encode()) if "/revision/" in path else None
    with pytest.raises(HubError, match="the repository is called 'acme/renamed' now"):
        pushed(model)


def test_others_who_change_other_files_at_the_same_time(fake: FakeHub, model: Path) -> None:
    fake.repos[MODEL] = new_repo()
    fake.inject(Fault("moved", only="/commit/"))
    report = pushed(model)
    assert held(fake.repos[MODEL]) == {**model_of(model), "late.txt": b"x"}
    assert commits(fake, MODEL) == 3
    assert report.commit == fake.repos[MODEL].refs["main"]
    fake.inject(Fault("moved", only="/commit/", times=-1))
    (model / "README.md").write_text(card(model, MODEL))
    with (model / "bench.json").open("a") as stream:
        stream.write("\n")
    with pytest.raises(HubError, match="others commit to it at the same time; nothing was committed"):
        pushed(model)


def test_others_who_change_the_same_files(fake: FakeHub, model: Path) -> None:
    fake.repos[MODEL] = repo = new_repo()

    def overtake(method: str, path: str) -> None:
        if "/commit/" in path and len(repo.commits) == 1:
            repo.commit("main", {**repo.head.files, "README.md": b"# theirs"}, "theirs")

    fake.answer = overtake  # type: ignore[assignment]
    with pytest.raises(HubError, match=r"somebody else has changed it meanwhile: README\.md; nothing was committed"):
        pushed(model)
    assert held(repo) == {"README.md": b"# theirs"}


def test_a_hub_that_holds_other_bytes_afterwards(fake: FakeHub, model: Path) -> None:
    def change(method: str, path: str) -> None:
        if "/tree/" in path and MODEL in fake.repos and len(fake.repos[MODEL].commits) == 2:
            fake.repos[MODEL].head.files["openvino_model.xml"] = b"other"

    fake.answer = change  # type: ignore[assignment]
    with pytest.raises(HubError, match=r"is made; then: the Hub does not hold what was sent: openvino_model\.xml"):
        pushed(model)


def test_a_file_that_changes_while_it_is_sent(fake: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.publishing.outgoing._READ_AT_ONCE_BYTES", 0)

    def change(method: str, path: str) -> None:
        if "/preupload/" in path:
            (model / "openvino_model.bin").write_bytes(b"x" * 2000)

    fake.answer = change  # type: ignore[assignment]
    with pytest.raises(ArtifactError, match=r"openvino_model\.bin: changed while it was sent; nothing was committed"):
        pushed(model)
    assert commits(fake, MODEL) == 1


def test_an_upload_that_finds_no_connection_is_sent_again(fake: FakeHub, model: Path) -> None:
    """huggingface_hub closes its session over a failed connection, and goes on with the closed one."""
    weights = (model / "openvino_model.bin").read_bytes()
    action = {"upload": {"href": "http://127.0.0.1:9/nobody"}}
    nowhere = {"oid": sha256(weights), "size": len(weights), "actions": action}
    body = json.dumps({"transfer": "basic", "objects": [nowhere]}).encode()
    fake.answer = lambda method, path: (
        (200, {"Content-Type": "application/json"}, body)
        if path.endswith("/batch") and len(fake.asked("/batch")) == 1
        else None
    )
    pushed(model)
    assert held(fake.repos[MODEL]) == model_of(model)
    assert len(fake.asked("/batch")) == 2


def test_a_gitignore_that_keeps_files_out(fake: FakeHub, model: Path) -> None:
    files = [{"path": name, "uploadMode": "regular", "shouldIgnore": True, "oid": None} for name in files_of(model)]
    files.append({"path": "README.md", "uploadMode": "regular", "shouldIgnore": True, "oid": None})
    body = json.dumps({"files": files}).encode()
    fake.answer = lambda method, path: (200, {}, body) if "/preupload/" in path else None
    with pytest.raises(HubError, match=r"\.gitignore keeps .* out; nothing was committed"):
        pushed(model)


def requests_of_a_push(fake: FakeHub, model: Path) -> int:
    pushed(model)
    count = len(fake.requests)
    del fake.repos[MODEL]
    fake.objects.clear()
    fake.uploads.clear()
    (model / "README.md").unlink()
    return count


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("status", 3),
        ("lost", 1),
        ("reset", 4),
        pytest.param("status", 1, marks=pytest.mark.slow),
        pytest.param("reset", 1, marks=pytest.mark.slow),
        pytest.param("hang", 1, marks=pytest.mark.slow),
        pytest.param("cut", 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stays", [True, False])
def test_a_fault_at_every_request_leaves_one_commit_or_none(
    fake: FakeHub, model: Path, kind: str, step: int, stays: bool
) -> None:
    count = requests_of_a_push(fake, model)
    assert count > 12
    for index in range(0, count, step):
        # One that stays meets every request from there on, and after its tries huggingface_hub may ask some more.
        fake.inject(*(Fault(kind, at=index + later) for later in range(40 if stays else 1)))  # type: ignore[arg-type]
        with pytest.raises(HubError) if stays else nullcontext():
            pushed(model)
        if MODEL in fake.repos:
            assert commits(fake, MODEL) in (1, 2)
            assert held(fake.repos[MODEL]) in ({}, model_of(model))
        fake.inject()
        sent = set(fake.uploads)
        fake.uploads.clear()
        pushed(model)
        assert not sent & set(fake.uploads)
        assert commits(fake, MODEL) == 2, index
        assert held(fake.repos[MODEL]) == model_of(model)
        del fake.repos[MODEL]
        fake.objects.clear()
        fake.uploads.clear()


def test_what_was_pushed_comes_back_and_verifies(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    pushed(model)
    snapshot = download(MODEL, None, ["*"])
    assert verify(snapshot.path).ok
    assert {k: v for k, v in files_of(snapshot.path).items() if k != ".gitattributes"} == held(fake.repos[MODEL])
    # What was pulled can be pushed on.
    assert pushed(snapshot.path, "acme/copy", keep_card=True).commit
    assert held(fake.repos["acme/copy"]) == held(fake.repos[MODEL])


def test_the_stock_client_reads_what_was_pushed(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    pushed(model)
    assert HfApi().model_info(MODEL).sha == fake.repos[MODEL].refs["main"]
    folder = Path(snapshot_download(MODEL, cache_dir=tmp_path / "stock"))
    assert verify(folder).ok


def test_huggingface_hub_has_its_own_client_back(fake: FakeHub, model: Path) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = get_session()
    pushed(model)
    assert get_session() is before
    assert not before.is_closed
    assert constants.HF_HUB_DISABLE_PROGRESS_BARS is not True


def test_git_agrees_on_the_hash_of_a_small_file(tmp_path: Path) -> None:
    """The comparison after a push rests on git's hash of a blob, which git itself computes here."""
    from llmcompress.hub.listing import HubFile
    from llmcompress.hub.upload import Outgoing, differing

    content = b"some text\n"
    (tmp_path / "x").write_bytes(content)
    done = subprocess.run(["git", "hash-object", str(tmp_path / "x")], capture_output=True, text=True, check=True)
    there = {"x": HubFile("x", len(content), git_sha1=done.stdout.strip())}
    assert differing({"x": Outgoing(content, len(content), sha256(content))}, there) == []
    assert differing({"x": Outgoing(b"SOME text\n", len(content), "")}, there) == ["x"]


def test_an_artifact_that_is_not_whole_on_the_hub(fake: FakeHub, model: Path) -> None:
    from llmcompress.publishing import fetch_artifact

    pushed(model)
    del fake.repos[MODEL].head.files["openvino_model.bin"]
    with pytest.raises(ArtifactError, match=r"files of its manifest are not there: openvino_model\.bin"):
        fetch_artifact(MODEL)
    del fake.repos[MODEL].head.files["llmcompress.json"]
    with pytest.raises(ArtifactError, match="is no llmcompress artifact"):
        fetch_artifact(MODEL)


def test_the_command(fake: FakeHub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.repos[MODEL] = new_repo({"notes.md": b"mine"})
    (model / "tune.json").write_text("{}")
    assert run(["push", str(model), MODEL, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "this is a dry run" in shown
    assert all(name in shown for name in (*files_of(model), "# model", MODEL, "Left as they are", "Without tune.json"))
    assert run(["push", str(model), MODEL, "--tag", "v1", "--public", "--delete-others"]) == 0
    shown = capsys.readouterr().out
    assert f"{fake.url}/{MODEL}/commit/{fake.repos[MODEL].refs['main']}" in shown
    assert all(name in shown for name in ("Deleted", "notes.md", "Tags", "Compared"))
    assert run(["push", str(model), MODEL]) == 0
    assert "none: the repository holds exactly this already" in capsys.readouterr().out
    assert run(["push", str(model), MODEL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repo_id"] == MODEL
    assert run(["push", str(model), MODEL, "--private"]) == 2
    assert run(["verify", MODEL]) == 0
    assert run(["verify", MODEL, "--offline", "--revision", "main"]) == 0
    assert run(["verify", str(model), "--offline"]) == 2
    assert "have no effect on a directory" in capsys.readouterr().err
