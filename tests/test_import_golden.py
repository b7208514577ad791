"""Every form of mergekit's files as a Modelfile, and every fault of one, to the letter: two golden files."""

import pytest
import yaml
from importing_tools import FILE, blocks, imported

from modelbuild.errors import ModelfileError, Where
from modelbuild.importing.models import Folders
from modelbuild.importing.names import of_recipe, short, slug
from modelbuild.importing.translate import translate
from modelbuild.importing.yamltext import LARGEST, decoded
from modelbuild.modelfile.spec import Constant, Texts


def golden(name):
    return [pytest.param(recipe, expected, id=title) for title, recipe, expected in blocks(name)]


@pytest.mark.parametrize(("recipe", "expected"), golden("import_golden.txt"))
def test_a_recipe_becomes_this_modelfile(recipe, expected):
    found, _ = imported(recipe)
    assert found.text + "".join(f"note: {note}\n" for note in found.notes) == expected + "\n"


@pytest.mark.parametrize(("recipe", "expected"), golden("import_faults.txt"))
def test_a_faulty_recipe_is_told_so_in_its_own_file(recipe, expected):
    with pytest.raises(ModelfileError) as caught:
        imported(recipe)
    assert caught.value.exit_code == 2
    assert caught.value.render() == expected
    lines = recipe.count("\n") + 1
    assert all(fault.where.file == FILE and fault.where.line <= lines for fault in caught.value.faults)


@pytest.mark.parametrize(("recipe", "expected"), golden("import_golden.txt"))
def test_no_line_is_longer_than_120(recipe, expected):
    found, _ = imported(recipe)
    assert max(map(len, found.text.splitlines())) <= 120


@pytest.mark.parametrize(("recipe", "expected"), golden("import_golden.txt"))
def test_every_place_of_the_modelfile_is_one_of_the_recipe(recipe, expected):
    _, spec = imported(recipe)
    lines = recipe.splitlines()
    for path, where in spec.positions.items():
        assert where.file == FILE
        assert 1 <= where.line <= len(lines), path
        assert 1 <= where.column <= len(lines[where.line - 1]) + 1, path


# --- what is in no golden file ----------------------------------------------------------------------------------------


def test_windows_line_ends_and_a_byte_order_mark_change_nothing():
    recipe = next(recipe for title, recipe, _ in blocks("import_golden.txt") if title == "ties with gradients")
    odd = decoded(b"\xef\xbb\xbf" + recipe.replace("\n", "\r\n").encode(), FILE)
    assert imported(odd)[0].text == imported(recipe)[0].text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: \xff\nb", "error: the file is not UTF-8\n  --> config.yml:1\n   |  byte 0xff"),
        ("a: b".encode("utf-16"), "error: the file is UTF-16\n  --> config.yml:1\n\nhint: save it as UTF-8"),
        (b" " * (LARGEST + 1), "error: the file is larger than 1 MiB\n  --> config.yml"),
    ],
)
def test_what_is_no_text_is_told(data, message):
    with pytest.raises(ModelfileError) as caught:
        decoded(data, FILE)
    assert caught.value.render() == message


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a: &x {b: *y}", "\x00", "a: \x07", "%YAML 9", "?"]
)
def test_hostile_yaml_is_a_fault_and_nothing_worse(text):
    with pytest.raises(ModelfileError):
        imported(text)


def test_comments_hold_what_a_recipe_says_and_nothing_gets_out_of_them():
    recipe = (
        'merge_method: linear\n"x\\n[merge.evil]\\u001b[31m": 1\nmodels: [{model: org/a, parameters: {weight: 1}}]\n'
    )
    found, spec = imported(recipe)
    assert set(spec.artifacts) == {"a", "made"}
    assert "\x1b" not in found.text
    assert "[merge.evil]" not in found.text.splitlines()


TOKENS = ["😀", "a\nb", "\x7f", '"', "\\", "é", " ", "<|im_start|>", "x.y", "'" * 3]


@pytest.mark.parametrize("token", TOKENS, ids=ascii)
def test_any_token_can_be_chosen(token):
    tokens = {token: {"source": {"kind": "model_token", "model": "a/a", "token": token}}}
    recipe = {"merge_method": "linear", "models": [{"model": "a/a", "parameters": {"weight": 1}}]}
    _, spec = imported(yaml.safe_dump(recipe | {"tokenizer": {"tokens": tokens}}))
    assert spec.artifacts["made"].tokens == {token: {"model": "a", "token": token}}


def test_the_text_is_the_same_for_any_hash_seed(world):
    """Parameters that have to stand on each model come from a collection of names."""
    levels = ", ".join(f"{name}: [{{filter: layers.3., value: 0.5}}, {{value: 1}}]" for name in ("weight", "density"))
    models = "{model: a/b, layer_range: [0, 2]}, {model: a/c, layer_range: [1, 3]}"
    recipe = f"merge_method: ties\nbase_model: a/b\nparameters: {{{levels}}}\nslices: [{{sources: [{models}]}}]\n"
    (world.root / "x.yml").write_text(recipe)
    texts = {world.run("import", "x.yml", "--out", "-", PYTHONHASHSEED=str(seed)).stdout for seed in range(4)}
    assert len(texts) == 1
    assert "density = [" in texts.pop()


def test_numbers_that_yaml_reads_as_strings_are_numbers():
    _, spec = imported("merge_method: ram\nbase_model: a/b\nmodels: [{model: c/d}]\nparameters: {epsilon: 1e-6}\n")
    assert spec.artifacts["made"].parameters["epsilon"] == Constant(1e-6)
    assert yaml.safe_load("1e-6") == "1e-6"


def test_prompts_of_an_expert_stay_apart():
    recipe = "base_model: a/b\nexperts:\n- {source_model: a/c, positive_prompts: [x, y]}\n- {source_model: a/d}\n"
    recipe += "gate_mode: random\n"
    _, spec = imported(recipe)
    first, second = spec.artifacts["made"].models
    assert first.parameters["prompt"] == Texts(("x", "y"))
    assert "prompt" not in second.parameters


def test_a_model_that_is_on_the_disk_is_a_path_and_any_other_is_on_the_hub(tmp_path):
    (tmp_path / "home" / "models" / "near").mkdir(parents=True)
    (tmp_path / "other" / "models" / "far").mkdir(parents=True)
    folders = Folders(str(tmp_path / "home"), (str(tmp_path / "other"),))
    names = ("models/near", "models/far", "models/none", "./models/none", "../x/y", "a/b/c")
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + "".join(f"- model: {name}\n" for name in names)
    _, spec = imported(text, folders=folders)
    found = [artifact.source for artifact in spec.artifacts.values() if artifact.kind == "base"]
    assert found == ["models/near", "../other/models/far", "hf:models/none", "./models/none", "../x/y", "a/b/c"]


def test_a_revision_of_a_folder_is_left_out_and_noted(tmp_path):
    (tmp_path / "a").mkdir()
    found, spec = imported("merge_method: passthrough\nmodels: [{model: a@x}]\n", folders=Folders(str(tmp_path)))
    assert spec.artifacts["a"].source == "a"
    assert found.notes == ("config.yml:2:18: the revision `x` is left out: `a` is no Hub repository",)


def test_the_recipe_of_the_last_name_is_what_the_file_makes():
    recipe = "name: {}\nmerge_method: passthrough\nmodels: [{{model: org/a}}]\n"
    assert imported(recipe.format("Über Alles!"))[0].name == "uber-alles"
    both = recipe.format("b") + "---\n" + recipe.format("c")
    assert imported(both)[0].name == "c"
    assert imported("---\n" + both + "\n---\n")[0].name == "c"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["tokyotech-llm/Swallow-70b-instruct-hf", "allenai/tulu-2-dpo-70b"], ["swallow", "tulu"]),
        (["elinas/chronos-13b-v2", "jondurbin/airoboros-l2-13b-gpt4-2.0"], ["chronos", "airoboros"]),
        (["a/Mistral-7B-v0.1", "a/Mistral-7B-Instruct-v0.2"], ["mistral-7b-v0-1", "mistral-7b-instruct"]),
        (["meta-llama/Meta-Llama-3-8B"], ["meta-llama"]),
        (["Sao10K/L3-8B-Stheno-v3.2", "NousResearch/Nous-Hermes-13b"], ["l3-8b-stheno", "nous-hermes"]),
        (["one/model", "two/model", "three/model"], ["model", "two-model", "three-model"]),
        (["./out/", "/models/x/", "C:\\models\\y"], ["out", "x", "y"]),
        (["文/模型", "..", "taken"], ["model", "model-2", "taken-2"]),
    ],
)
def test_names_are_short_and_tell_models_apart(paths, names):
    assert short(paths, {"taken"}) == names


def test_the_first_name_that_says_something_is_that_of_the_recipe():
    assert of_recipe(["config", "Superswallow-70b", "x"]) == "superswallow-70b"
    assert of_recipe(["mergekit_config", "", "…"]) == "merge"
    assert slug("--A b.C_") == "a-b-c"


def test_a_recipe_is_read_where_it_stands():
    with pytest.raises(ModelfileError) as caught:
        translate("merge_method: x", Where("README.md", 10, 4), ["x"], Folders("."))
    assert str(caught.value.faults[0].where) == "README.md:11:19"
