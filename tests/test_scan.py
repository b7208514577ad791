"""The position scanner finds exactly the keys that tomli finds, each where it stands."""

import re
import time
from datetime import date, datetime
from datetime import time as clock

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild.errors import Where
from modelbuild.modelfile import scan as scanner
from modelbuild.modelfile.positions import Positions
from modelbuild.modelfile.scan import expand, scan


def paths(value, path=()):
    """Every path inside a value that tomli gave."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def at(value, path):
    for part in path:
        value = value[part]
    return value


def mark_at(text, root, path):
    for part in path:
        expand(text, root)
        root = root.inside[part]
    return root


def agrees_with_tomli(text):
    """Holds the scanner to tomli: the same paths, values that parse to the same, keys that are spelled there."""
    parsed = tomli.loads(text)
    text = text.replace("\r\n", "\n")
    positions = Positions("Modelfile", text, {})
    assert set(positions) == set(paths(parsed))
    assert len(positions) == len(list(paths(parsed)))
    root = scan(text)
    lines = text.split("\n")
    for path in paths(parsed):
        mark = mark_at(text, root, path)
        if mark.start >= 0:
            again = tomli.loads(f"x = {text[mark.start : mark.end]}")["x"]
            assert repr(again) == repr(at(parsed, path))  # repr tells types apart and takes NaN for NaN
        where = positions[path]
        rest = lines[where.line - 1][where.column - 1 :]
        if isinstance(path[-1], str) and "\\" not in rest:
            assert rest.startswith((path[-1], f'"{path[-1]}"', f"'{path[-1]}'"))


TRICKY = [
    "",
    "\n\n# only a comment",
    "a = 1",
    "a=1 # x = 2\nb=2#",
    "a.b.c = 1\na.b.d = 2\n[a.e]\nf = 3",
    " a . \"b c\" . 'd.e' = 1",
    '"" = 1\n"\\u0041\\t" = 2\n"é" = 3',
    "[a]\n[a.b]\nc = 1\n[d]\n",
    "[a.b.c]\nx = 1\n[a]\ny = 2\n[a.b]\nz = 3",
    "[ a . b ]\t# comment ]\nx = [\n # ] comment\n 1, # two\n 2,\n]\n",
    "[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3\n[[a.e]]\nf = 1\n[[a.e]]\nf = 2\n[[a]]\n",
    "[[ a . b ]]\nc = 1\n[[a.b]]\n[a.b.d]\ne = 1\n",
    '["a]b"]\nx = 1\n[["c]]d"]]\ny = 1',
    'a = { b = 1, c.d = 2, "e" = { f = [ { g = 1 }, { g = 2 } ] } }',
    "a = {\n  b = 1, # comment }\n  c = [\n 1,\n ],\n}\n",
    "a = {}\nb = []\nc = [ ]\nd = { }\ne = [\n]\nf = [[], [[]], {}]\n",
    'a = "x # y"\nb = \'x " y\'\nc = "q\\"r"\nd = "\\\\"\ne = ""\nf = \'\'\n',
    'a = """x"""\nb = """\nx "" y\n"""\nc = """a""""\nd = """a"""""\ne = """\\"""" # c\nf = ""\n',
    "a = '''x'''\nb = '''\nx '' y\n'''\nc = '''a''''\nd = '''a'''''\n",
    'a = """x \\\n   y"""\nb = ["""]""", \'}\', "]"]\n',
    "a = 1979-05-27 07:32:00\nb = [1979-05-27 07:32:00Z, 1979-05-27T07:32:00.5+01:00]\n",
    "a = [1979-05-27, 07:32:00, 07:32]\n",
    "a = [1, +2, -3.5e-7, 0xff, inf]\n",
    "a = [inf, -nan, true, 1_000, 0b01, 0o7]\n",
    "a = [1, 2 # c\n, 3]\nb = [ [1, 2], [ 3 ] , ['x'] ]\n",
    'a = 1\r\nb = """x\r\ny"""\r\n[c]\r\nd = [\r\n1,\r\n2]\r\n',
    "1234 = 1\n3.14 = 2\ntrue = 3\n-_- = 4",
    "a = 'é' # é\nb = ['é', {u = 1}]",
]


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_documents_are_scanned_as_tomli_reads_them(text):
    agrees_with_tomli(text)


def test_each_key_stands_where_an_editor_shows_it():
    text = (
        '# head\n[merge.x]\nt = 0.5\n  models = [ { model = "a", weight = [1, 2] },\n'
        '    { model = "b" } ]\n[[merge.x.slices]]\n'
    )
    places = Positions("Modelfile", text, {})
    assert places[("merge",)] == Where("Modelfile", 2, 2)
    assert places[("merge", "x")] == Where("Modelfile", 2, 8)
    assert places[("merge", "x", "t")] == Where("Modelfile", 3, 1)
    assert places.value(("merge", "x", "t")) == Where("Modelfile", 3, 5)
    assert places[("merge", "x", "models", 0, "weight")] == Where("Modelfile", 4, 29)
    assert places.value(("merge", "x", "models", 0, "weight", 1)) == Where("Modelfile", 4, 42)
    assert places[("merge", "x", "models", 1, "model")] == Where("Modelfile", 5, 7)
    assert places[("merge", "x", "slices", 0)] == Where("Modelfile", 6, 11)


def test_a_key_that_is_not_in_the_file_stands_at_the_table_around_it():
    places = Positions("Modelfile", "[merge.x]\nmethod = 'lerp'\n", {})
    assert places.key(("merge", "x", "base")) == Where("Modelfile", 1, 8)
    assert places.value(("merge", "x", "models", 3, "model")) == Where("Modelfile", 1, 8)
    assert places.key(("quantize", "q")) == Where("Modelfile")
    assert ("merge", "x", "base") not in places
    assert places.get(("merge", "y")) is None
    assert places.get(()) is None


def test_what_an_option_set_stands_at_the_option():
    places = Positions("Modelfile", "a = 1\nb = [1]\n", {("a",): "--set a=2", ("b", 0): "--set b.0=3"})
    assert places[("a",)] == Where("--set a=2")
    assert places.value(("b", 0)) == Where("--set b.0=3")
    assert places[("b",)] == Where("Modelfile", 2, 1)


# --- generated documents -----------------------------------------------------------------------------------------

BARE = st.text("abz019_-", min_size=1, max_size=4)
STRINGS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
SPACE = st.sampled_from(["", " ", "\t "])
BREAK = st.sampled_from(["", " ", "\n", " # c ]}\"'\n", "\n\n\t"])


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def key_part(draw, name):
    forms = [quoted(name)]
    if name and all(char in "abz019_-" for char in name):
        forms.append(name)
    if "'" not in name:
        forms.append(f"'{name}'")
    return draw(SPACE) + draw(st.sampled_from(forms)) + draw(SPACE)


SCALARS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "false", "1_0", "0xff", "+1", "''", '""', "07:32:00", '"""a""""', "'''''b'''"]),
    st.datetimes(datetime(1000, 1, 1)).map(lambda value: value.isoformat(" ")),
    st.dates(date(1000, 1, 1)).map(lambda value: value.isoformat()),
    st.times().map(clock.isoformat),
    STRINGS.map(quoted),
    STRINGS.map(lambda text: '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + '\n"""'),
    STRINGS.map(lambda text: "'" + text.replace("'", "") + "'"),
    STRINGS.map(lambda text: "'''\n" + text.replace("'", "") + "\n'''"),
)


@st.composite
def array(draw, inner):
    text = "["
    for item in draw(st.lists(inner, max_size=4)):
        text += draw(BREAK) + item + draw(BREAK) + ","
    if text.endswith(",") and draw(st.booleans()):
        text = text[:-1]
    return text + draw(BREAK) + "]"


@st.composite
def inline_table(draw, inner):
    text = "{"
    names = draw(st.lists(st.one_of(BARE, STRINGS), max_size=3, unique=True))
    for name in names:
        text += draw(BREAK) + draw(key_part(name))
        if draw(st.booleans()):
            text += "." + draw(key_part("x"))
        text += "=" + draw(SPACE) + draw(inner) + draw(BREAK) + ","
    if text.endswith(",") and draw(st.booleans()):
        text = text[:-1]
    return text + draw(BREAK) + "}"


VALUES = st.recursive(SCALARS, lambda inner: array(inner) | inline_table(inner), max_leaves=8)


@st.composite
def documents(draw):
    lines = []
    for header in draw(st.lists(st.lists(BARE, min_size=1, max_size=3), max_size=4)):
        brackets = draw(st.sampled_from(["[{}]", "[[{}]]"]))
        lines.append(brackets.format(".".join([draw(key_part(part)) for part in header])))
        for name in draw(st.lists(st.one_of(BARE, STRINGS), max_size=4, unique=True)):
            key = draw(key_part(name)) + draw(st.sampled_from(["", ".y", ". y . z"]))
            lines.append(key + "=" + draw(SPACE) + draw(VALUES) + draw(st.sampled_from(["", " # [x]\n", "\t"])))
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines)


@given(documents())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_generated_documents_are_scanned_as_tomli_reads_them(text):
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return  # headers that contradict each other: the scanner only runs on what tomli accepts
    agrees_with_tomli(text)


@given(st.lists(st.sampled_from(list("ab.=[]{}\"'#,\n 1\\")), max_size=24).map("".join))
@settings(max_examples=500, deadline=None)
def test_noise_that_tomli_accepts_is_scanned_too(text):
    try:
        tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError):
        return
    agrees_with_tomli(text)


def test_nesting_costs_no_stack():
    deep = "x = " + "[" * 390 + "]" * 390
    assert mark_at(deep, scan(deep), ("x", *[0] * 389)).end == len(deep) - 389


@pytest.mark.parametrize(
    "line",
    ["key-{} = 1\n", "# comment {}\n", "[table.name{}]\n", "[[list]]\nx = 'y{}'\n", "k{} = [1, 2, 3, 'x']\n"],
)
def test_the_time_of_a_scan_grows_with_the_text_and_no_faster(line):
    def seconds(count):
        text = "".join(line.format(index) for index in range(count))
        best = 9.0
        for _ in range(3):
            start = time.perf_counter()
            scan(text)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(16_000) < 4 * 4 * seconds(4_000) + 0.05


def test_no_pattern_has_a_possessive_group():
    # Python 3.11.0 to 3.11.4 match them wrongly: `"""x"""` was read as `""`.
    patterns = [value.pattern for value in vars(scanner).values() if isinstance(value, re.Pattern)]
    assert len(patterns) == 6
    assert not [pattern for pattern in patterns if re.search(r"\)(?:[*+?]|\{[^}]*\})\+", pattern)]


@pytest.mark.parametrize(
    ("text", "name", "second", "first"),
    [
        ("a = 1\nb = 2\na = 3", "a", 12, 0),
        ("x = { a = 'a = 1', a = 2 }", "a", 19, 6),
        ("a.b = 1\na.b = 2", "a.b", 10, 2),
        ("[t]\n[u]\n[t]", "t", 9, 1),
        ("t = {}\n[t]", "t", 8, 0),
        ("a.b = 1\na = {}", "a", 8, 0),
        ("[[t]]\na = [\n1]\na = 2", "a", 15, 6),
    ],
)
def test_what_stands_twice_is_found_at_its_key(text, name, second, first):
    with pytest.raises(tomli.TOMLDecodeError):
        tomli.loads(text)
    with pytest.raises(scanner.Twice) as caught:
        scan(text)
    assert (caught.value.name, caught.value.offset, caught.value.first) == (name, second, first)
