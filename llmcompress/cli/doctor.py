"""`llmcompress doctor`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, print_blocks, print_labelled, print_report, table, write_line
from llmcompress.cli.options import Json, Verbose
from llmcompress.cli.progress import watching
from llmcompress.errors import ResourceError
from llmcompress.report.text import size_text

if TYPE_CHECKING:
    from llmcompress.cli.diagnosis import Diagnosis


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """[bold]Examples[/bold]
    llmcompress doctor
    llmcompress doctor --json > doctor.json
    """
    from llmcompress.cli.diagnosis import diagnose

    with watching(verbose=verbose) as watch:
        diagnosis = diagnose(watch.report)
    print_report(diagnosis, _print, as_json=as_json)
    broken = [finding for finding in diagnosis.findings if finding.broken]
    if broken:
        more = f", and {len(broken) - 1} more above" if len(broken) > 1 else ""
        raise ResourceError(broken[0].message + more, where="doctor", hint=broken[0].hint)


def _print(diagnosis: Diagnosis) -> None:
    from rich.text import Text

    facts = {
        "Platform": f"{diagnosis.platform}, Python {diagnosis.python}",
        "Processor": f"{diagnosis.cpu}, {diagnosis.num_cores} cores",
        "Instructions": ", ".join(diagnosis.cpu_features) or "not listed by this system",
        "Memory": f"{size_text(diagnosis.available_memory_bytes)} free of {size_text(diagnosis.memory_bytes)}"
        + (" (limit of the control group)" if diagnosis.memory_limit_bytes is not None else "")
        + (f", swap {size_text(diagnosis.swap_bytes)}" if diagnosis.swap_bytes else ", no swap"),
    }
    for disk in diagnosis.disks:
        facts[disk.use[:1].upper() + disk.use[1:]] = f"{disk.path}  ({size_text(disk.free_bytes)} free)"
    for device in diagnosis.devices:
        capabilities = f"  ({', '.join(device.capabilities)})" if device.capabilities else ""
        facts[f"Device {device.name}"] = device.full_name + capabilities
    packages = table(["Package", "Installed", *(["Tested with"] if diagnosis.has_tested_set else [])])
    for package in diagnosis.packages:
        differs = package.tested is not None and package.installed != package.tested
        installed = Text(package.installed or "not installed", style="yellow" if differs else "")
        tested = [(package.tested or "") + (" (differs)" if differs else "")] if diagnosis.has_tested_set else []
        packages.add_row(package.name, installed, *tested)
    print_blocks(facts_table(facts), packages)
    write_line("")
    for finding in diagnosis.findings:
        label, style = ("broken: ", "bold red") if finding.broken else ("note: ", "bold")
        print_labelled(label, finding.message, style)
        print_labelled("hint: ", finding.hint, "bold cyan")
    if not diagnosis.findings:
        write_line("No broken combination was found.")
