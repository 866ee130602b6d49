"""`llmcompress recipes`"""

from __future__ import annotations

from typing import Annotated

import typer

from llmcompress.cli.console import print_blocks, print_json, print_text, table, write_line
from llmcompress.cli.options import Json, Overrides

ORDER = (
    *("int4", "int4-awq-se", "int4-awq", "int4-gptq", "int4-learned", "int4-distilled", "int4-mixed", "int4-sym"),
    *("int4-sym-learned", "int4-sym-distilled", "int4-npu"),
    *("int8", "int8-sym", "int8-ptq"),
)
"""Those that are taken most first; the others follow by name, the uncompressed one last."""

recipes = typer.Typer(invoke_without_command=True, add_completion=False, rich_markup_mode="rich")


@recipes.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """[bold]Examples[/bold]
    llmcompress recipes
    llmcompress recipes show int4 > mine.yaml
    """
    if context.invoked_subcommand is not None:
        return
    from llmcompress.spec import RECOMMENDED, packaged_recipes

    packaged = packaged_recipes()
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in packaged])
        return
    from rich.text import Text

    found = table(["Recipe", "When to take it"], one_line=["Recipe"])
    found.columns[0].style = "bold"
    places = {name: place for place, name in enumerate(ORDER)}
    for recipe in sorted(packaged, key=lambda each: (each.name == "none", places.get(each.name, len(ORDER)))):
        found.add_row(recipe.name, Text(recipe.description or ""))
    for name, bits in RECOMMENDED.items():
        found.add_row(name, f"What Optimum recommends for the model at hand in {bits} bits, else its general settings.")
    print_blocks(found)
    print_text("Recommended to begin with: int4; where eval finds that it loses too much, int4-awq-se, then int8.")


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")], overrides: Overrides = None, as_json: Json = False
) -> None:
    """Print one recipe as YAML that can be edited and given back to --recipe.

    NAME|FILE is a packaged recipe or a YAML file.

    [bold]Examples[/bold]
    llmcompress recipes show int4
    llmcompress recipes show int4 --set weights.group_size=64 > int4-g64.yaml
    """
    from llmcompress.spec import dump_recipe, load_recipe

    recipe = load_recipe(name, overrides or ())
    if as_json:
        print_json(recipe)
    else:
        write_line(dump_recipe(recipe).rstrip("\n"))
