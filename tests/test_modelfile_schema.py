"""The JSON Schema for editors and the registries behind it say what the checks say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from pydantic import ValidationError

import modelbuild.methods
from modelbuild.formats.registry import formats
from modelbuild.methods.registry import method, methods
from modelbuild.modelfile import keys
from modelbuild.modelfile.parse import parse_text
from modelbuild.modelfile.schema import json_schema, modelfile_model
from modelbuild.modelfile.template import TEMPLATE

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "Modelfile.example").read_text("utf-8")


@pytest.fixture(scope="module")
def schema():
    return json_schema()


def fits(schema, value, part=None):
    """Whether the value fits the schema: as much of JSON Schema as ours uses, and an error for anything beyond it."""
    part = schema if part is None else part
    known = {"$schema", "$defs", "title", "description", "$ref", "type", "anyOf", "properties", "required", "const"}
    known |= {"additionalProperties", "propertyNames", "patternProperties", "items", "enum", "pattern", "minLength"}
    known |= {"minimum", "maximum", "minItems", "maxItems"}
    assert set(part) <= known, set(part) - known
    if "$ref" in part:
        return fits(schema, value, schema["$defs"][part["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in part:
        return any(fits(schema, value, option) for option in part["anyOf"])
    if "const" in part or "enum" in part:
        return value in part.get("enum", [part.get("const")])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and isinstance(value, int),
    }
    if "type" in part and not right[part["type"]]:
        return False
    if number:
        return part.get("minimum", value) <= value <= part.get("maximum", value)
    if isinstance(value, str):
        return len(value) >= part.get("minLength", 0) and re.search(part.get("pattern", ""), value) is not None
    if isinstance(value, list):
        long_enough = part.get("minItems", 0) <= len(value) <= part.get("maxItems", len(value))
        return long_enough and all(fits(schema, entry, part.get("items", {})) for entry in value)
    if isinstance(value, dict):
        return set(part.get("required", ())) <= set(value) and all(
            _property_fits(schema, name, inner, part) for name, inner in value.items()
        )
    return True


def _property_fits(schema, name, value, part):
    if name in part.get("properties", {}):
        return fits(schema, value, part["properties"][name])
    for pattern, inner in part.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return fits(schema, value, inner)
    if "propertyNames" in part and not fits(schema, name, part["propertyNames"]):
        return False
    others = part.get("additionalProperties", True)
    return others if isinstance(others, bool) else fits(schema, value, others)


RIGHT = [
    EXAMPLE,
    TEMPLATE,
    '[base.a]\nsource = "a"\n[merge.x]\nmethod = "passthrough"\nonly = "mlp"\n'
    'slices = [{ layers = [0, 1], scale = 2, models = [{ model = "a", scale = [1, 2] }] }]\n',
    '[base.a]\nsource = "a"\n[adapter.e]\nextract = { model = "a", base = "a", rank = 1 }\n'
    '[adapter.c]\ncombine = [{ adapter = "e", weight = 1 }]\nrank = 2\n',
    '[base.a]\nsource = "a"\n[merge.x]\nmethod = "task_arithmetic"\nbase = "a"\nlambda = 0.5\nnormalize = true\n'
    'models = [{ model = "a", weight = [{ match = "m", value = [{ value = { points = [[0, 1]] } }] }] }]\n',
]
WRONG = [
    "modelfile = 2",
    "frob = 1",
    '[base.A]\nsource = "a"',
    "[base.a]",
    "[base.a]\nsource = 1",
    '[base.a]\nsource = "a"\nsha256 = "x"',
    '[settings]\ndtype = "bf16"',
    "[settings]\nseed = -1",
    '[adapter.a]\nextract = { model = "a", base = "b", rank = 0 }',
    '[merge.x]\nmethod = "tise"',
    '[merge.x]\nmethod = "linear"\nmodels = []',
    '[merge.x]\nmethod = "linear"\nmodels = [{ model = "a", weight = [] }]',
    '[merge.x]\nmethod = "linear"\nmodels = [{ model = "a", normalize = true }]',
    '[merge.x]\nmethod = "linear"\nmodels = [{ model = "a", weight = { points = [[0]] } }]',
    '[merge.x]\nmethod = "linear"\nmodels = [{ model = "a", weight = [{ match = "x" }] }]',
    '[merge.x]\nmethod = "passthrough"\nslices = [{ layers = [0, 1, 2], models = [{ model = "a" }] }]',
    '[quantize.q]\nmodel = "a"\nformat = "ggfu"\ntype = "Q8_0"',
    '[quantize.q]\nmodel = "a"\nformat = "bnb"\ntype = "nf4"\nblock_size = 0',
    '[publish.x]\nrepo = "x"',
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_fits_the_schema_the_model_and_the_checks(schema, text):
    parse_text(text, "Modelfile")
    assert fits(schema, tomli.loads(text))
    assert modelfile_model().model_validate(tomli.loads(text))


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_form_fits_neither_schema_nor_model(schema, text):
    assert not fits(schema, tomli.loads(text))
    with pytest.raises(ValidationError):
        modelfile_model().model_validate(tomli.loads(text))


def test_the_schema_names_every_kind_key_method_parameter_format_and_type(schema):
    text = json.dumps(schema)
    words = [*keys.TOP, *methods(), *formats()]
    words += [parameter.name for found in methods().values() for parameter in found.parameters]
    for known in formats().values():
        words += [*known.types, *(option.name for option in known.options)]
    for table in (*keys.KINDS.values(), keys.SETTINGS, keys.MODEL, keys.SLICE, keys.POINTS, keys.CHOICE):
        words += table
    assert [word for word in words if f'"{word}"' not in text] == []


def test_every_key_in_the_schema_says_what_it_is_for(schema):
    for name, part in schema["$defs"].items():
        for key, entry in part.get("properties", {}).items():
            assert entry.get("description"), (name, key)


def test_the_documentation_names_every_key():
    text = (ROOT / "docs/modelfile.md").read_text("utf-8")
    for table in (*keys.KINDS.values(), keys.SETTINGS, keys.EXTRACT, keys.COMBINED, keys.POINTS, keys.CHOICE):
        assert [key for key in table if not re.search(rf"\b{key}\b", text)] == []


def test_the_documentation_s_examples_are_right():
    text = (ROOT / "docs/modelfile.md").read_text("utf-8")
    bases = "".join(f'[base.{name}]\nsource = "{name}"\n' for name in ("xwin", "euryale", "llava", "vicuna-tuned"))
    examples = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert examples
    for example in examples:
        assert parse_text(bases + example, "Modelfile").artifacts


# --- the registry of methods -------------------------------------------------------------------------------------


def test_methods_that_are_built_have_a_file_of_their_own_name():
    folder = Path(modelbuild.methods.__file__).parent
    built = [found for found in methods().values() if found.step is not None]
    assert {"linear", "lerp", "task_arithmetic", "passthrough", "lora"} <= {found.name for found in built}
    assert all((folder / f"{found.name}.py").is_file() for found in built)


def test_every_method_says_what_it_is_and_its_defaults_lie_in_range():
    for found in methods().values():
        assert found.summary
        assert found.base in ("required", "optional", "none")
        for parameter in found.parameters:
            assert parameter.help
            assert not parameter.choices or parameter.default in parameter.choices
            if isinstance(parameter.default, int | float) and parameter.type in ("number", "integer"):
                assert parameter.default >= (parameter.default if parameter.low is None else parameter.low)
                assert parameter.default <= (parameter.default if parameter.high is None else parameter.high)


def test_a_method_is_found_by_its_name_and_nothing_else():
    assert method("lerp").name == "lerp"
    assert method("Lerp") is None
    assert method("base") is None
    assert list(methods()) == sorted(methods())


def test_reading_a_modelfile_loads_neither_torch_nor_numpy_nor_pydantic():
    code = (
        "import sys\nfrom modelbuild.modelfile.parse import load\nload('Modelfile.example')\n"
        "heavy = ('torch', 'numba', 'numpy', 'pydantic', 'huggingface_hub', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
