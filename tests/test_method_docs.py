"""docs/methods.md: a section for every method, with formula, picture, paper, and each parameter as it is declared."""

import re
from pathlib import Path

import pytest

from modelbuild.methods.registry import methods

TEXT = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
BUILT = [name for name, found in methods().items() if found.step is not None]


def section(name):
    """The section whose heading names a method."""
    parts = re.split(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    found = [body for heading, body in zip(parts[1::2], parts[2::2], strict=True) if name in heading.split(", ")]
    assert len(found) == 1, name
    return found[0]


def declared(name):
    """Of each parameter in a method's table: whose it is, and its default there, as text."""
    rows = re.findall(r"^\| `([\w]+)` \| ([^|]+) \| ([^|]+) \|(.*)\|$", section(name), re.MULTILINE)
    found = {}
    for parameter, of, default, text in rows:
        alone = re.search(r"`(\w+)` alone", text)
        if alone is None or alone[1] == name:
            own = re.search(rf"`{name}`: ([^;]+)", default)
            found[parameter] = (of.strip(), (own[1] if own else default.split(";")[0]).strip())
    return found


def shown(parameter):
    """A default as the table has it."""
    if parameter.default is None:
        return "none" if parameter.nullable else "required"
    value = parameter.default
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def plain(text):
    """1.0, 1e-05 and 1 are one number."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


@pytest.mark.parametrize("name", BUILT)
def test_the_table_of_a_method_is_its_declaration(name):
    method = methods()[name]
    owners = {"merge": "the merge", "input": "each adapter" if method.takes == "adapters" else "each input"}
    expected = {p.name: (owners[p.scope], plain(shown(p))) for p in method.parameters}
    assert {key: (of, plain(default)) for key, (of, default) in declared(name).items()} == expected


@pytest.mark.parametrize("name", BUILT)
def test_a_method_has_a_formula_a_picture_and_its_paper(name):
    text = section(name)
    assert re.search(r"[yY] = ", text)
    assert "```" in text
    assert methods()[name].paper in text
    assert "](http" in text


def test_every_section_that_names_a_method_names_one_that_there_is():
    headings = re.findall(r"^## ([a-z_]+(?:, [a-z_]+)*)$", TEXT, re.MULTILINE)
    assert {name for heading in headings for name in heading.split(", ")} == set(BUILT)


def test_the_links_of_the_document_lead_to_its_headings():
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links
    assert set(links) <= headings
