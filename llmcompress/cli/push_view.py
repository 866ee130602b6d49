"""A push as tables."""

from __future__ import annotations

from llmcompress.cli.console import facts_table, stdout, write_line
from llmcompress.report import PushReport
from llmcompress.wording import size_text


def print_push(report: PushReport) -> None:
    """Print what a push did or would do; of a dry run also every file and the card."""
    console = stdout()
    console.print(facts_table(_facts(report)))
    if not report.dry_run:
        return
    write_line("")
    width = max(len(file.path) for file in report.files)
    for file in report.files:
        write_line(f"  {file.path:<{width}}  {size_text(file.size_bytes):>8}  {file.state}")
    for path in report.deleted:
        write_line(f"  {path:<{width}}  {'':>8}  deleted")
    write_line("\nREADME.md\n")
    write_line(report.card.rstrip())


def _facts(report: PushReport) -> dict[str, str]:
    sent = [file for file in report.files if file.state != "unchanged"]
    num_same = len(report.files) - len(sent)
    states = ["new"] if report.created else []
    if report.private is not None:
        states.append("private" if report.private else "public")
    facts = {"Repository": f"{report.url} ({', '.join(states)})"}
    if report.dry_run:
        facts["Nothing sent"] = "this is a dry run"
    if report.pull_request_url:
        facts["Pull request"] = report.pull_request_url
    if report.commit_url:
        facts["Commit"] = report.commit_url
    elif not report.dry_run:
        facts["Commit"] = "none: the repository holds exactly this already"
    same = f"; {num_same} there already" if num_same else ""
    facts["Files"] = f"{len(sent)} new or changed, {size_text(report.sent_bytes)}{same}"
    if report.commit_url:
        facts["Compared"] = f"{len(report.files)} files on the Hub, all by hash"
    for name, values in (("Deleted", report.deleted), ("Left as they are", report.kept), ("Tags", report.tags)):
        if values:
            facts[name] = ", ".join(values)
    for path, reason in report.left_out.items():
        facts[f"Without {path}"] = reason
    if report.collection:
        facts["Collection"] = report.collection
    if report.forced:
        facts["Forced"] = report.forced
    return facts
