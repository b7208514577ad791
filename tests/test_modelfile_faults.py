"""Every fault that a Modelfile can show, as its reader sees it: modelfile_faults.txt has the files and the texts."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import ModelfileError, UsageError
from modelbuild.modelfile.parse import load, parse_text
from modelbuild.modelfile.template import TEMPLATE

ROOT = Path(__file__).parent.parent
LONG = {"@@NINES@@": "9" * 5000, "@@ZEROS@@": "0" * 400, "@@DEEP@@": "[" * 100_000, "@@DOTS@@": ".a" * 100_000}


def golden():
    """(name, Modelfile, what is told) of each block of the golden file."""
    blocks = re.split(r"^=== ", (ROOT / "tests/modelfile_faults.txt").read_text("utf-8"), flags=re.MULTILINE)
    for block in blocks[1:]:
        name, _, rest = block.partition("\n")
        text, _, told = rest.partition("---\n")
        yield pytest.param(text, told.strip(), id=name)


def told(text, *overrides):
    with pytest.raises(ModelfileError) as caught:
        parse_text(text, "Modelfile", overrides)
    assert caught.value.exit_code == 2
    return caught.value.render()


def faults_of(text):
    """What is wrong with the text; anything but a ModelfileError gets through."""
    try:
        parse_text(text, "Modelfile")
    except ModelfileError as error:
        return error.faults
    return ()


@pytest.mark.parametrize(("text", "expected"), list(golden()))
def test_what_is_told(text, expected):
    for short, long in LONG.items():
        text = text.replace(short, long)
    assert told(text) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[base.a]\nsource = "\xff"\n', "error: the file is not UTF-8\n  --> Modelfile:2:11\n   |  byte 0xff"),
        ('# é\nsource = "é'.encode() + b"\x80", "error: the file is not UTF-8\n  --> Modelfile:2:12\n   |  byte 0x80"),
        (
            '[base.a]\nsource = "a"\n'.encode("utf-16"),
            "error: the file is UTF-16, and a Modelfile is UTF-8\n  --> Modelfile:1\n\nhint: save it as UTF-8",
        ),
        (
            '[base.a]\nsource = "a"\n'.encode("utf-8-sig"),
            "error: the file starts with a byte order mark\n  --> Modelfile:1:1\n\n"
            "hint: save it as UTF-8 without a byte order mark",
        ),
        (
            b"\x00\x01\x02",
            "error: not TOML: invalid statement\n  --> Modelfile:1:1\n   |  \\u0000\\u0001\\u0002",
        ),
    ],
)
def test_bytes_that_are_no_text_are_told_where(data, expected):
    assert told(data) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM llama3", "Ollama"),
        ("\n\n# x\n\n  from ./model.gguf\n", "Ollama"),
        ('# FROM x\nFROM y\nTEMPLATE """{{ .Prompt }}"""', "Ollama"),
        ("FROMAGE = ", "not TOML"),
        ("# FROM x\na = ", "not TOML"),
    ],
)
def test_an_ollama_modelfile_is_recognised_and_nothing_else(text, message):
    assert message in told(text)


def test_a_file_that_is_not_there_is_a_wrong_command_line(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path / "Modelfile"), display="Modelfile")
    assert caught.value.exit_code == 2
    assert caught.value.render() == (
        "error: there is no file `Modelfile`\n\nhint: `modelbuild init` writes one to start from"
    )


def test_a_folder_is_not_a_modelfile(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path), display="here")
    assert caught.value.render() == "error: `here` is a folder, not a Modelfile"
    (tmp_path / "Modelfile").write_text("")
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path), display="here")
    assert "hint: use `-f " in caught.value.render()


def test_a_path_that_cannot_be_is_no_traceback():
    with pytest.raises(UsageError, match="cannot be read"):
        load("a\0b")


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("modelbuild.modelfile.parse.LARGEST", 2**20)
    (tmp_path / "Modelfile").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ModelfileError, match="larger than 1 MiB"):
        load(str(tmp_path / "Modelfile"))


def test_no_more_than_a_hundred_faults_are_told_and_the_rest_counted():
    text = told("".join(f"stray{index} = 1\n" for index in range(250)))
    assert text.count("-->") == 100
    assert text.endswith("error: 150 more faults like these are not shown")


TEN_MEGABYTES = {
    "a comment": "#" * 10_000_000,
    "blank lines": "\n" * 10_000_000,
    "no TOML": "a\n" * 5_000_000,
    "brackets": "[" * 10_000_000,
    "one string": 'x = "' + "é" * 5_000_000 + '"',
}


@pytest.mark.parametrize("name", TEN_MEGABYTES)
def test_ten_megabytes_get_a_short_answer_quickly(name):
    start = time.perf_counter()
    answer = told(TEN_MEGABYTES[name].encode())
    assert time.perf_counter() - start < 5
    assert len(answer) < 500


def test_the_time_grows_with_the_number_of_artifacts_and_no_faster():
    def seconds(count):
        models = "".join(f'[base.b{i}]\nsource = "a"\n' for i in range(count))
        inputs = ",".join(f'{{model = "b{i}"}}' for i in range(count))
        chain = "".join(f'[merge.m{i}]\nmethod = "lerp"\nt = 0\nbase = "m{i + 1}"\n' for i in range(count))
        text = f'{models}{chain}[merge.x]\nmethod = "linear"\nweight = 1\nmodels = [{inputs}, "bad"]\n'
        start = time.perf_counter()
        told(text)
        return time.perf_counter() - start

    assert seconds(4000) < 16 * seconds(1000) / 4 * 3 + 0.1


VALID = (
    (ROOT / "Modelfile.example").read_text("utf-8")
    + """
[merge.stack]
method = "passthrough"
slices = [
  { layers = [0, 4], models = [ { model = "chronos" } ] },
  { models = [ { model = "airoboros", layers = [2, 6] } ] },
]
tokenizer = "base"
[merge.sum]
method = "linear"
weight = [ { match = "mlp", value = [0.1, 0.2] }, { value = 1 } ]
models = [ { model = "chronos" }, { model = "stack" } ]
config = { a = { b = [1, 2.5, "c", true] } }
[adapter.both]
combine = [ { adapter = "limarp", weight = 0.5 } ]
"""
)
PIECES = [
    *"[]{}=,.\"'\n#",
    *("[[", "]]", "0", "-1", "nan", "1e999", "true", '""', "'x'", "{}", "[]", "1979-05-27", "models", "method", "base"),
    *(
        "merge",
        "value",
        "points",
        "match",
        "layers = [3, 1]",
        'model = "x"',
        "weight = [1, {}]",
        "\x00",
        "é",
        "[merge.x]",
    ),
]


def test_the_file_that_is_mutated_is_right():
    assert len(parse_text(VALID, "Modelfile").artifacts) == 9


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_mutated_modelfile_is_right_or_a_modelfile_error(data):
    text = VALID
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(PIECES) | st.just("")) + text[end:]
    assert all(fault.message in fault.render() for fault in faults_of(text))


TOKENS = re.findall(r'"[^"\n]*"|[\w.-]+', TEMPLATE.partition("[settings]")[2])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_words_of_the_file_in_other_places_are_right_or_a_modelfile_error(data):
    """Replaces whole words by other words and values, so that most results are TOML and reach the checks."""
    words = ['"x"', "1", "-0.5", "true", "[]", "{}", "[[0, 1]]", "[{ value = 1 }]", "nan", "2024-01-01"]
    spans = [found.span() for found in re.finditer(r'"[^"\n]*"|\[\[.*?\]\]|[\d.]+|\b[a-z_]+\b', VALID)]
    text = VALID
    for start, end in sorted(data.draw(st.lists(st.sampled_from(spans), min_size=1, max_size=4, unique=True)))[::-1]:
        text = text[:start] + data.draw(st.sampled_from([*words, *TOKENS])) + text[end:]
    assert all(0 <= fault.where.line <= text.count("\n") + 1 for fault in faults_of(text) if fault.where)
