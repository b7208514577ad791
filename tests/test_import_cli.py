"""`modelbuild import`, and builds that start from a mergekit YAML instead of a Modelfile."""

import json
import textwrap
from pathlib import Path

import pytest

from modelbuild.artifact.recipe import artifact_data
from modelbuild.errors import Where
from modelbuild.importing.load import load
from modelbuild.importing.models import Folders
from modelbuild.importing.translate import translate
from modelbuild.modelfile.parse import load as load_modelfile
from modelbuild.options import Options
from modelbuild.report.terminal import Listener
from modelbuild.resolved import values_with

MIX = """\
merge_method: linear
models:
  - model: red
    parameters: {weight: 0.5, densty: 1}
  - model: blue
    parameters: {weight: [0.25, 0.5]}
dtype: bfloat16
"""
NOTE = "mix.yml:4:31: `densty` is no parameter of linear: mergekit does not read it, and it is left out"


@pytest.fixture
def mix(world):
    """Two models and a recipe."""
    world.model("red", seed=1).model("blue", seed=2)
    world.path = world.root / "mix.yml"
    return world.modelfile(MIX)


def ran(world, *words, code=0, **env):
    found = world.run(*words, **env)
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    return found


# --- import -----------------------------------------------------------------------------------------------------------


def test_import_writes_the_modelfile_and_says_what_it_left_out(mix):
    found = ran(mix, "import", "mix.yml")
    assert (found.stdout, found.stderr) == ("wrote Modelfile\n", f"note: {NOTE}\n")
    text = (mix.root / "Modelfile").read_text()
    assert '[base.red]\nsource = "red"' in text
    assert ran(mix, "build").stdout.startswith("mix: built → build/mix")


def test_import_leaves_a_modelfile_that_is_there(mix):
    (mix.root / "Modelfile").write_text("mine")
    found = ran(mix, "import", "mix.yml", code=2)
    assert found.stderr == (
        "error: Modelfile is there already\n\nhint: `--out FILE` writes another, `--out -` prints it\n"
    )
    assert (mix.root / "Modelfile").read_text() == "mine"


@pytest.mark.parametrize("words", [["import", "mix.yml", "--out", "Other"], ["-f", "Other", "import", "mix.yml"],
                                   ["import", "mix.yml", "--modelfile", "Other"]], ids=" ".join)  # fmt: skip
def test_import_writes_where_it_is_told(mix, words):
    assert ran(mix, *words).stdout == "wrote Other\n"
    assert (mix.root / "Other").exists()
    assert not (mix.root / "Modelfile").exists()


def test_import_to_stdout_writes_nothing_else(mix):
    before = sorted(mix.root.iterdir())
    found = ran(mix, "import", "mix.yml", "--out", "-")
    assert found.stdout == imported_here(mix).text
    assert sorted(mix.root.iterdir()) == before


def imported_here(world):
    return translate(MIX, Where("mix.yml"), ["mix"], Folders(str(world.root)))


def test_import_as_json(mix):
    data = json.loads(ran(mix, "import", "mix.yml", "--json").stdout)
    assert data["modelfile"] == "Modelfile"
    assert data["name"] == "mix"
    assert data["notes"] == [NOTE]
    assert data["text"] == (mix.root / "Modelfile").read_text()
    assert json.loads(ran(mix, "import", "mix.yml", "--out", "-", "--json").stdout)["modelfile"] is None


def test_import_into_another_folder_keeps_paths_right(mix):
    (mix.root / "sub").mkdir()
    ran(mix, "import", "mix.yml", "--out", "sub/Modelfile")
    assert 'source = "../red"' in (mix.root / "sub" / "Modelfile").read_text()
    ran(mix, "-f", "sub/Modelfile", "plan", "--allow-path")


def test_import_names_the_merge_as_it_is_told(mix):
    assert "[merge.violet]" in ran(mix, "import", "mix.yml", "--name", "violet", "--out", "-").stdout
    found = ran(mix, "import", "mix.yml", "--name", "Über Alles", code=2)
    assert found.stderr.endswith("hint: for example `uber-alles`\n")


def test_a_file_with_a_name_that_says_nothing_is_called_by_its_folder(mix):
    (mix.root / "violet-blend").mkdir()
    (mix.root / "violet-blend" / "config.yml").write_text(MIX)
    assert "[merge.violet-blend]" in ran(mix, "import", "violet-blend/config.yml", "--out", "-").stdout


def test_models_are_looked_for_beside_the_recipe_and_then_where_the_command_runs(mix):
    """As an import finds them; what lies outside of the recipe's folder has to be allowed."""
    (mix.root / "recipes").mkdir()
    (mix.root / "mix.yml").rename(mix.root / "recipes" / "mix.yml")
    found = ran(mix, "build", "recipes/mix.yml", code=2)
    assert "lies outside the Modelfile's folder\n  --> recipes/mix.yml:" in found.stderr
    assert "mix: built" in ran(mix, "build", "recipes/mix.yml", "--allow-path").stdout


def test_the_ending_of_a_recipe_may_be_in_capitals(mix):
    (mix.root / "mix.yml").rename(mix.root / "MIX.YML")
    assert "mix: built" in ran(mix, "build", "MIX.YML").stdout
    assert "mix: nothing to do" in ran(mix, "build", "MIX.YML").stdout
    assert "mix" in ran(mix, "-f", "MIX.YML", "plan").stdout


def test_a_faulty_recipe_writes_nothing(mix):
    mix.edit("linear", "liner")
    found = ran(mix, "import", "mix.yml", code=2)
    assert found.stderr == (
        "error: mergekit has no method `liner`\n  --> mix.yml:1:15\n\nhint: did you mean `linear`?\n\n"
        "error: `densty` is no parameter of any method: mergekit does not read it\n  --> mix.yml:4:31\n\n"
        "hint: did you mean `density`?\n"
    )
    assert not (mix.root / "Modelfile").exists()


@pytest.mark.parametrize(("path", "text"), [("nowhere.yml", "there is no file `nowhere.yml`"),
                                            ("red", "`red` is a folder, not a recipe")])  # fmt: skip
def test_a_file_that_is_not_there_is_a_usage_error(mix, path, text):
    assert ran(mix, "import", path, code=2).stderr == f"error: {text}\n"


@pytest.mark.parametrize("source", ["org/Some-7B", "https://huggingface.co/org/Some-7B",
                                    "https://huggingface.co/org/Some-7B/blob/main/README.md"])  # fmt: skip
def test_a_repository_without_its_prefix_is_told_how_to_be_named(mix, source):
    assert ran(mix, "import", source, code=2).stderr == (
        f"error: there is no file `{source}`\n\nhint: a repository on the Hub is `hf:org/Some-7B`\n"
    )


@pytest.mark.parametrize("source", ["folder/nope.yml", "folder/NOPE.md", "./nope", "../nope", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_repository(mix, source):
    assert ran(mix, "import", source, code=2).stderr == f"error: there is no file `{source}`\n"


def test_what_belongs_to_the_tokenizer_is_sent_there(mix):
    mix.modelfile(MIX.replace(", densty: 1", "") + "pad_to_multiple_of: 64\n")
    text = "mergekit does not know `pad_to_multiple_of` in a recipe, and it is left out"
    assert ran(mix, "import", "mix.yml", "--out", "-").stderr == (
        f"note: mix.yml:8:1: {text}; `pad_to_multiple_of` stands under `tokenizer`\n"
    )


# --- a recipe in the place of a Modelfile -----------------------------------------------------------------------------


def test_a_recipe_builds_directly_and_is_what_its_modelfile_builds(mix):
    found = ran(mix, "build", "mix.yml")
    assert found.stdout.startswith("mix: built → build/mix (21 computed of 21 tensors;")
    assert f"note: {NOTE}" in found.stdout + found.stderr
    direct = mix.bytes("mix")
    copy = mix.copy()
    ran(copy, "import", "mix.yml")
    ran(copy, "build")
    assert copy.bytes("mix") == direct


def test_everything_stands_beside_the_recipe(mix):
    ran(mix, "-f", "mix.yml", "build")
    there = sorted(path.name for path in mix.root.iterdir())
    assert there == ["blue", "build", "cache", "mix.yml", "mix.yml.lock", "red"]
    assert "[sources.red]" in (mix.root / "mix.yml.lock").read_text()


def test_building_a_recipe_again_does_nothing_and_loads_nothing(mix):
    ran(mix, "build", "mix.yml")
    again = ran(mix, "build", "mix.yml")
    assert again.stdout == "mix: nothing to do (21 tensors, build/mix)\n"
    assert ran(mix, "-f", "mix.yml", "build").stdout == again.stdout
    for words in (["build", "mix.yml"], ["-f", "mix.yml", "build"]):
        assert not {"yaml", "typer", "numpy"} & {name.split(".")[0] for name in mix.imports(*words)}, words


def test_an_edit_of_the_recipe_is_seen_and_explained(mix):
    ran(mix, "build", "mix.yml")
    mix.edit("[0.25, 0.5]", "[0.25, 0.75]")
    assert "weight of `blue` 0.5 → 0.75" in ran(mix, "-f", "mix.yml", "why", "mix").stdout
    assert ran(mix, "build", "mix.yml").stdout.startswith("mix: built")


def test_a_fault_stands_in_the_recipe(mix):
    mix.edit("0.5, densty: 1", "1e400")
    assert "  --> mix.yml:4:26\n" in ran(mix, "build", "mix.yml", code=2).stderr


def test_what_only_the_inputs_show_stands_in_the_recipe(mix):
    mix.model("blue", seed=2, hidden=16)
    found = ran(mix, "build", "mix.yml", code=1)
    assert "  --> mix.yml:5:5\n" in found.stderr


def test_a_source_that_is_not_there_stands_in_the_recipe(mix):
    mix.edit("model: blue", "model: ./green")
    found = ran(mix, "build", "mix.yml", code=4)
    assert "  --> mix.yml:5:12\n" in found.stderr


def test_an_override_reaches_into_the_recipe(mix):
    words = ("build", "mix.yml", "--set", "merge.mix.models.0.weight=0.75")
    assert ran(mix, *words).stdout.startswith("mix: built")
    found = ran(mix, "build", "mix.yml", "--set", "merge.mix.models.0.weight=x", code=2)
    assert "  --> --set merge.mix.models.0.weight=x\n" in found.stderr


def test_plan_takes_a_recipe_too(mix):
    found = ran(mix, "plan", "mix.yml")
    assert found.stdout.startswith("mix: would be built (21 computed of 21 tensors)\n")
    assert f"note: {NOTE}\n" in found.stdout


@pytest.mark.parametrize("command", ["build", "plan"])
def test_a_card_or_modelfile_in_the_place_of_a_name_says_how_to_start_from_it(mix, command):
    (mix.root / "card.md").write_text(f"# Mix\n```yaml\n{MIX}```\n")
    (mix.root / "red" / "Modelfile").write_text("")
    wanted = {
        "card.md": "`modelbuild import card.md` writes its recipe as a Modelfile",
        "red/Modelfile": f"`modelbuild -f red/Modelfile {command}` starts from it",
    }
    for name, hint in wanted.items():
        found = ran(mix, command, name, code=2)
        assert found.stderr == f"error: `{name}` is a file; `{command}` takes names\n\nhint: {hint}\n"


def test_targets_may_follow_a_recipe(mix):
    assert ran(mix, "build", "mix.yml", "mix").stdout.startswith("mix: built")
    assert "`nope` is not in mix.yml" in ran(mix, "build", "mix.yml", "nope", code=2).stderr


def test_two_files_to_start_from_are_one_too_many(mix):
    (mix.root / "Other").write_text("")
    found = ran(mix, "-f", "Other", "build", "mix.yml", code=2)
    assert found.stderr.startswith("error: there are two files to start from\n")
    ran(mix, "build", "mix.yml", MODELBUILD_FILE="Other")


def test_other_commands_read_a_recipe_as_well(mix):
    ran(mix, "-f", "mix.yml", "build")
    assert "model.embed_tokens.weight" in ran(mix, "-f", "mix.yml", "inspect", "red").stdout
    ran(mix, "-f", "mix.yml", "clean")
    assert ran(mix, "-f", "mix.yml", "lock").stdout == "mix.yml.lock: 2 sources, nothing changed\n"
    assert (mix.out / "mix" / "model.safetensors").exists()


def test_a_modelfile_is_planned_without_yaml(violet):
    found = {name.split(".")[0] for name in violet.imports("plan")}
    assert "yaml" not in found


def test_a_chain_with_an_adapter_builds_from_one_file(world):
    world.model("red", seed=1).model("blue", seed=2).lora("style", "red", seed=3)
    (world.root / "chain.yml").write_text(
        textwrap.dedent("""
            name: half
            merge_method: linear
            models: [{model: red+style, parameters: {weight: 1}}, {model: blue, parameters: {weight: 1}}]
            ---
            merge_method: task_arithmetic
            base_model: red
            models: [{model: half, parameters: {weight: 0.5}}]
        """)
    )
    data = json.loads(ran(world, "build", "chain.yml", "--json").stdout)
    assert {entry["name"]: entry["status"] for entry in data["artifacts"]} == {
        "red-style": "streamed", "half": "streamed", "chain": "built",
    }  # fmt: skip


# --- the example ------------------------------------------------------------------------------------------------------


def test_the_example_and_its_recipe_are_the_same_merge():
    """Equal specs are equal plans: a plan is made of nothing but the spec and its sources."""
    folder = Path(__file__).parent.parent / "examples" / "superswallow"
    ours, theirs = load_modelfile(str(folder / "Modelfile")), load(str(folder / "config.yml"))
    described = [[artifact_data(a) for a in spec.artifacts.values()] for spec in (ours, theirs)]
    assert described[0] == described[1]
    assert ours.settings == theirs.settings
    assert list(theirs.artifacts) == ["swallow", "tulu", "superswallow"]
    assert theirs.notes == ()


def test_the_modelfile_of_a_recipe_is_read_as_the_recipe_is(mix):
    (mix.root / "Modelfile").write_text(imported_here(mix).text)
    ours, theirs = load_modelfile(str(mix.root / "Modelfile")), load(str(mix.root / "mix.yml"))
    assert ours.artifacts == theirs.artifacts
    assert (ours.notes, theirs.notes) == ((), (f"{mix.root}/{NOTE}",))


def test_the_example_and_its_recipe_come_to_the_same_values_and_the_same_plan(world):
    """At small scale, with vocabularies that differ as the real ones do."""
    world.model("swallow", seed=1, layers=8, vocab=96).model("tulu", seed=2, layers=8)
    folder = Path(__file__).parent.parent / "examples" / "superswallow"
    hub = {"tokyotech-llm/Swallow-70b-instruct-hf": "swallow", "allenai/tulu-2-dpo-70b": "tulu"}
    found = []
    for file, prefix in (("Modelfile", "hf:"), ("superswallow.yml", "")):
        text = (folder / file.replace("superswallow", "config")).read_text()
        for address, local in hub.items():
            assert prefix + address in text
            text = text.replace(prefix + address, local)
        world.path = world.root / file
        world.modelfile(text)
        values = values_with(Options(modelfile=str(world.path)), "superswallow", Listener())
        found.append((values, world.plan()["superswallow"].key))
    assert found[0] == found[1]
    assert len(found[0][0].tensors) == 75
