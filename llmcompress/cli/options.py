"""Options that mean the same in every command."""

# Arguments are explained in the commands' texts: the help of `typer.Argument` is not shown with every version of click.
from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Override one field; may be repeated."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub source.", show_default=False)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Go on when weights hold NaN or infinity.")]
ReferenceRevision = Annotated[
    str | None, typer.Option("--reference-revision", show_default=False, help="Revision of a Hub reference.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, in one step at the end.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as one JSON document.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show stage durations, the libraries' logs and whole tracebacks.")
]
