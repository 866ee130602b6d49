"""Templates of others: what they reach, how long they may be and take, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import DictLoader

from llmcompress.errors import UsageError
from llmcompress.publishing import sandbox
from llmcompress.publishing.sandbox import render

VARIABLES = {
    "title": "a*b",
    "absent": None,
    "count": 1234567,
    "kl": {"value": 0.0047912, "standard_error": None, "low": 0.0045, "high": 0.005},
}
HINT = "see docs/cards.md for what a template may use; {% extends 'card.md.j2' %} starts from the packaged one"


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[..., str]:
    def rendered(text: str, **more: Any) -> str:
        path = tmp_path / "t.j2"
        path.write_text(text, encoding="utf-8")
        return render({**VARIABLES, **more}, path)

    return rendered


def refused(rendered: Callable[..., str], text: str, **more: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        rendered(text, **more)
    return caught.value


def test_values_are_inert_and_the_templates_own_text_is_not(rendered: Callable[..., str]) -> None:
    assert rendered("<b>{{ title }}</b> *{{ absent }}* {{ count }}\n") == "<b>a\\*b</b> *not measured* 1,234,567\n"
    assert rendered("{{ title | upper }} {{ more }}", more="<i>") == "A\\*B &#60;i&#62;"


def test_what_a_filter_made_stays_so_next_to_what_is_made_inert(rendered: Callable[..., str]) -> None:
    assert rendered("{{ ('x' | code) ~ more }}", more="<b>") == "`x`&lt;b&gt;"


def test_blocks_leave_no_lines_and_the_end_stays(rendered: Callable[..., str]) -> None:
    assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n\n") == "a\nb\nc\n\n"


def test_filters(rendered: Callable[..., str]) -> None:
    assert rendered("{{ kl | interval_text }} {{ kl | interval_text('.2g') }}") == (
        "0.004791 [0.0045, 0.005] 0.0048 [0.0045, 0.005]"
    )
    assert rendered("{{ 'a' | code }} {{ 'a' | python }} {{ 'a b' | shell }}") == "`a` \"a\" 'a b'"
    assert rendered("{{ 'a: b' | fence('yaml') }}\n{{ 'm' | chat_request }}").startswith('```yaml\na: b\n```\n{"model"')
    assert rendered("{{ 2519565 | size_text }} {{ 2519565 | count_text }}") == "2.52 MB 2.52 M"


def test_the_packaged_template_is_there_to_be_extended(
    rendered: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"^card\.md\.j2: names what is not there: ") as caught:
        render(VARIABLES)
    assert caught.value.hint == "variables: absent, count, kl, title"
    assert refused(rendered, "{% extends 'card.md.j2' %}").message.startswith("names what is not there: ")
    found = refused(rendered, "{% include 'other' %}")
    assert (found.message, found.hint) == (
        "includes 'other'; only 'card.md.j2' is there", "put the text into the template",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "{{ 2 ** 64 - 1 }}",
        "{{ 2 ** 63 * 1 }}",
        "{{ 1.5 * 2 }}",
        "{{ 7 % 4 }}",
        "{{ (2 ** 64 - 1) * 1 }}",
        "{{ 'a' ~ 'b' }}",
    ],
)
def test_numbers_of_usual_size_are_calculated(rendered: Callable[..., str], text: str) -> None:
    # Python's own answer, written as the page writes it.
    value = eval(text.strip("{ }").replace("~", "+"))
    assert rendered(text) == (f"{value:,}" if isinstance(value, int) else str(value))


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("{{ 18446744073709551616 * 1 }}", "*"),
        ("{{ 1 * 18446744073709551616 }}", "*"),
        ("{{ -18446744073709551616 % 3 }}", "%"),
        ("{{ 36893488147419103231 * 1 }}", "*"),
        ("{{ 2 ** 65 }}", "**"),
        ("{{ 2 ** -65 }}", "**"),
        ("{{ 'a' * 3 }}", "*"),
        ("{{ 3 * 'a' }}", "*"),
        ("{{ '%9d' % 3 }}", "%"),
        ("{{ [0] * 3 }}", "*"),
    ],
)
def test_much_is_not_made_of_little(rendered: Callable[..., str], text: str, operator: str) -> None:
    found = refused(rendered, text)
    assert found.message == (
        f"reaches for what the sandbox forbids: the operator {operator} is for numbers of usual size here"
    )
    assert found.hint == HINT


def test_only_the_power_has_a_limit_of_its_second_number(rendered: Callable[..., str]) -> None:
    assert rendered("{{ 65 * 65 }} {{ 65 % 66 }} {{ 2 ** 64 }}") == "4,225 65 18,446,744,073,709,551,616"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", "is no Jinja template: Expected an expression, got 'end of statement block'"),
        ("{{ other }}", "names what is not there: 'other' is undefined"),
        ("{{ kl.other.deeper }}", "names what is not there: 'dict object' has no attribute 'other'"),
        ("{{ ''.__class__ }}", "reaches for what the sandbox forbids: access to attribute '__class__'"),
        ("{{ kl.update({}) }}", "reaches for what the sandbox forbids: "),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError: division by zero"),
        ("{{ title + 1 }}", "fails: TypeError: "),
        ("{{ bad(0) }}", "fails: MemoryError: "),
        ("{{ bad(1) }}", "fails: KeyError: "),
        ("{{ bad(2) }}", "fails: AttributeError: "),
        ("{{ bad(3) }}", "fails: ValueError: "),
        ("{{ bad(4) }}", "fails: RecursionError: "),
        ("{{ bad(5) }}", "fails: TemplateError: "),
        ("{{ bad(6) }}", "fails: OverflowError: "),
        ("{{ bad(7) }}", "fails: ValueError: " + "x" * 281),
    ],
)
def test_what_fails_says_why(rendered: Callable[..., str], text: str, message: str) -> None:
    from jinja2 import TemplateError

    errors = [
        MemoryError(), KeyError(), AttributeError(), ValueError(), RecursionError(), TemplateError(), OverflowError(),
        ValueError("x" * 400),
    ]  # fmt: skip

    def bad(number: int) -> None:
        raise errors[number]

    found = refused(rendered, text, bad=bad)
    assert found.message.startswith(message)
    assert len(found.message) <= 300
    assert Path(found.where.partition(":")[0]).name == "t.j2"
    assert found.hint == (HINT if "not there" not in message else "variables: absent, bad, count, kl, title")


def test_a_mistake_of_ours_is_not_the_templates(rendered: Callable[..., str]) -> None:
    def bad() -> None:
        raise UsageError("ours", hint="as it is")

    found = refused(rendered, "{{ bad() }}", bad=bad)
    assert (found.message, found.hint, found.where) == ("ours", "as it is", "")


def test_a_page_has_a_largest_size(rendered: Callable[..., str]) -> None:
    line = "x" * 200_000
    assert len(rendered(f"{{% for n in range(10) %}}{line}{{% endfor %}}")) == 2_000_000
    found = refused(rendered, f"{{% for n in range(10) %}}{line}{{% endfor %}}x")
    assert found.message == "makes a page of more than 2,000,000 characters"
    assert found.hint == HINT


def test_a_template_has_a_longest_size(rendered: Callable[..., str]) -> None:
    assert rendered("x" * (256 * 1024)) == "x" * (256 * 1024)
    found = refused(rendered, "x" * (256 * 1024 + 1))
    assert (found.message, found.hint) == (
        "has 262,145 characters, at most 262,144 are accepted", "write a shorter template",
    )  # fmt: skip


def test_a_template_has_its_time(rendered: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("llmcompress.system.deadline.time", SimpleNamespace(monotonic=lambda: now[0]))

    def later(seconds: int) -> str:
        now[0] += seconds
        return ""

    assert rendered("{{ later(10) }}", later=later) == ""
    found = refused(rendered, "{{ later(10) }}{{ later(1) }}", later=later)
    assert (found.message, found.hint) == ("takes more than 10 s", HINT)


def test_the_packaged_template_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of every line would make it slow."""
    monkeypatch.setattr(sandbox, "deadline", None)
    with pytest.raises(UsageError, match="names what is not there"):
        render(VARIABLES)


def test_templates_are_utf8_whatever_the_system_writes(
    rendered: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "cp1252")
    assert rendered("Größe 模型") == "Größe 模型"
    loader = sandbox._environment.__wrapped__().loader
    assert isinstance(loader, DictLoader)
    assert "medians ± standard deviation" in loader.mapping[sandbox.PACKAGED]


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, message, hint in (
        ("none", "no such template", "check the path"),
        ("binary", "the template is not UTF-8", "save it as UTF-8"),
        (".", "cannot be read: Is a directory", "give a Jinja template in a file"),
    ):
        with pytest.raises(UsageError) as caught:
            render(VARIABLES, tmp_path / name)
        assert (caught.value.message, caught.value.hint) == (message, hint)
        assert caught.value.where == str(tmp_path / name)
