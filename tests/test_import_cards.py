"""Recipes in model cards and on the Hub, which is played by a small server that knows what the Hub's client asks."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelbuild.errors import ModelbuildError, SourceNotFound, UsageError
from modelbuild.importing.card import recipe, title
from modelbuild.importing.fetch import _offline, _refused, fetch
from modelbuild.importing.story import import_recipe

LINEAR = "merge_method: linear\nmodels:\n  - model: org/a-7b\n    parameters:\n      weight: 1\n"
SLERP = "merge_method: slerp\nbase_model: org/a-7b\nmodels: [{model: org/b-7b}]\nparameters: {t: 0.5}\n"
CARD = f"""---
base_model: [org/a-7b]
license: llama2
---
# Violet Blend #

```python
merge_method = "linear"
```

```
not: a recipe
```

### Configuration

```yaml
{LINEAR}```
"""

MIXTURE = "base_model: org/a\ngate_mode: random\nexperts: [{source_model: org/b}, {source_model: org/c}]\n"


def told(card, number=None):
    with pytest.raises(ModelbuildError) as caught:
        recipe(card, "README.md", number)
    assert caught.value.exit_code == 2
    return caught.value.render()


def test_the_recipe_of_a_card_is_its_fenced_block_and_keeps_its_place():
    found = recipe(CARD, "README.md")
    assert found.text == LINEAR
    assert (found.origin.file, found.origin.line) == ("README.md", CARD.split("\n").index("```yaml") + 1)
    assert title(CARD) == "Violet Blend"


@pytest.mark.parametrize("fence", ["```yaml", "```yml", "```YAML ", "````yaml", "~~~", "``` yaml", "```"])
def test_every_fence_of_markdown_is_known(fence):
    end = fence.split("y")[0].split("Y")[0].strip()
    assert recipe(f"text\n{fence}\n{LINEAR}{end}\nmore\n", "README.md").text == LINEAR


def test_an_indented_block_is_read_where_it_stands(tmp_path):
    inner = "".join(f"    {line}\n" for line in (LINEAR + "dtype: x").splitlines())
    (tmp_path / "README.md").write_text(f"- item\n\n    ```yaml\n{inner}    ```\n")
    with pytest.raises(ModelbuildError) as caught:
        import_recipe(str(tmp_path / "README.md"), "-")
    assert str(caught.value.faults[0].where).endswith("README.md:9:12")


def test_a_card_without_a_recipe_says_what_it_has():
    assert told("# Nothing\n") == (
        "error: there is no mergekit recipe in this card\n  --> README.md\n   |  it has no fenced block\n\n"
        "hint: copy the recipe into a file that ends in .yml"
    )
    assert "its only fenced block has no `merge_method`" in told("```yaml\na: 1\n```\n")
    assert "it has 2 fenced blocks, and none has a `merge_method`" in told("```\na: 1\n```\n```\nx\n```\n")


def test_a_block_that_nothing_closes_goes_on_to_the_end():
    assert recipe(f"```yaml\n{LINEAR}", "README.md").text == LINEAR


@pytest.mark.parametrize("language", ["text", "json", "bash", "YAML {.lines}"])
def test_a_recipe_may_be_called_another_language(language):
    assert recipe(f"```{language}\n{LINEAR}```\n", "README.md").text == LINEAR


def test_a_script_that_is_no_yaml_is_passed_over():
    assert recipe(f"```python\nmerge_method = [\n```\n```yaml\n{LINEAR}```\n", "README.md").text == LINEAR


def test_a_recipe_that_stands_twice_is_one():
    block = f"```yaml\n{LINEAR}```\n"
    assert recipe(f"{block}\n{block}", "README.md").origin.line == 1
    text = told(f"{block}\n```yaml\n{SLERP}```\n{block}")
    assert [line for line in text.splitlines() if "line" in line] == [
        "   |  1: line 2, `linear`",
        "   |  2: line 10, `slerp`",
    ]


def test_what_only_looks_like_a_recipe_is_read_where_there_is_no_other():
    """The fault is then that of the recipe: the key that is misspelled."""
    like = f"```yaml\n{LINEAR.replace('merge_method', 'merge_metod')}```\n"
    assert "merge_metod" in recipe(like, "README.md").text
    assert recipe(f"{like}```yaml\n{SLERP}```\n", "README.md").text == SLERP


def test_a_stack_of_bakllama_is_a_recipe():
    block = "layer_slices:\n- {model: org/a, start: 0, end: 4}\n"
    assert recipe(f"```yaml\n{block}```\n", "README.md").about == "a stack of layers"


def test_a_card_with_several_recipes_asks_which():
    both = f"{CARD}\nand\n\n```yaml\n{SLERP}```\n"
    line = both.split("\n").index("merge_method: slerp") + 1
    assert told(both) == (
        "error: `README.md` has 2 recipes\n   |  1: line 18, `linear`\n"
        f"   |  2: line {line}, `slerp`\n\nhint: choose one with `--block NUMBER`"
    )
    assert recipe(both, "README.md", 2).text == SLERP
    assert told(both, 3) == "error: there is no recipe number 3\n   |  there are 2 in `README.md`"
    assert told(CARD, 0) == "error: there is no recipe number 0\n   |  there is one in `README.md`"


def test_a_recipe_of_several_documents_is_one_block():
    text = f"name: x\n{LINEAR}---\n{SLERP.replace('org/a-7b', 'x')}"
    assert recipe(f"```yaml\n{text}```\n", "README.md").text == text


def test_a_recipe_that_is_no_yaml_is_told_and_not_passed_over(tmp_path):
    (tmp_path / "README.md").write_text("# x\n```yaml\nmerge_method: linear\nmodels: [\n```\n")
    with pytest.raises(ModelbuildError) as caught:
        import_recipe(str(tmp_path / "README.md"), "-")
    assert caught.value.exit_code == 2
    assert "not YAML" in caught.value.render()
    assert "README.md:5" in caught.value.render()


def test_a_merge_is_called_by_the_title_of_its_card(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    assert "[merge.violet-blend]" in import_recipe(str(tmp_path / "README.md"), "-").imported.text


def test_block_is_for_cards_only(tmp_path):
    (tmp_path / "x.yml").write_text(LINEAR)
    with pytest.raises(UsageError, match="--block"):
        import_recipe(str(tmp_path / "x.yml"), "-", block=1)


# --- the Hub ----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What the Hub's client asks for one file: HEAD for its commit and digest, GET for its bytes."""

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, whole):
        self.server.asked.append(self.path)
        owner, name, _, revision, file = self.path.removeprefix("/").split("/", 4)
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None:
            return self.refuse(401, "RepoNotFound")
        if f"{owner}/{name}" == "org/gated":
            return self.refuse(403, "GatedRepo")
        if revision not in ("main", "v2"):
            return self.refuse(404, "RevisionNotFound")
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[file].replace("linear", "karcher" if revision == "v2" else "linear").encode()
        self.send_response(200)
        self.send_header("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest())
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if whole:
            self.wfile.write(data)
        return None

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    server.repositories = {
        "org/Violet-7b": {"README.md": CARD},
        "org/both": {"mergekit_config.yml": SLERP, "README.md": CARD},
        "org/mixture": {"mergekit_moe_config.yml": MIXTURE},
        "org/none": {"config.json": "{}"},
        "org/gated": {},
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def asks(hub, tmp_path):
    """Runs `modelbuild import` against the server."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("MODELBUILD_", "HF_"))}
    host, port = hub.server_address
    ours |= {"HF_ENDPOINT": f"http://{host}:{port}", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    (tmp_path / "here").mkdir()

    def run(*words, **env):
        command = [sys.executable, "-m", "modelbuild", "import", *words]
        where = tmp_path / "here"
        return subprocess.run(command, cwd=where, env={**ours, **env}, capture_output=True, text=True, check=False)

    return run


def test_a_repository_is_imported_by_its_card(asks, tmp_path):
    ran = asks("hf:org/Violet-7b")
    assert (ran.returncode, ran.stdout) == (0, "wrote Modelfile\n"), ran.stderr
    text = (tmp_path / "here" / "Modelfile").read_text()
    assert text.startswith("# violet-7b: from hf:org/Violet-7b/README.md, a mergekit recipe (linear).\n")
    assert '[base.a-7b]\nsource = "hf:org/a-7b"' in text


def test_what_mergekit_left_in_a_repository_comes_before_its_card(asks):
    assert 'method = "slerp"' in asks("hf:org/both", "--out", "-").stdout
    assert 'method = "moe"' in asks("hf:org/mixture", "--out", "-").stdout


def test_a_revision_is_asked_for(asks, hub):
    assert 'method = "karcher"' not in asks("hf:org/Violet-7b", "--out", "-").stdout
    assert "/resolve/v2/README.md" not in str(hub.asked)
    ran = asks("hf:org/Violet-7b@v2", "--out", "-", "--name", "x")
    assert "/resolve/v2/README.md" in str(hub.asked)
    assert ran.returncode == 0
    assert "karcher" in ran.stdout


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("hf:org/nobody", "there is no `hf:org/nobody` on the Hub, or no access to it"),
        ("hf:org/gated", "`hf:org/gated` is gated"),
        ("hf:org/Violet-7b@never", "`hf:org/Violet-7b@never` has no such revision"),
        ("hf:org/none", "`hf:org/none` has no recipe"),
    ],
)
def test_exit_4_where_the_hub_gives_nothing(asks, tmp_path, address, text):
    ran = asks(address)
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ran.stderr.startswith(f"error: {text}\n")
    assert "Traceback" not in ran.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_exit_4_without_a_network(asks):
    ran = asks("hf:org/Violet-7b", HF_HUB_OFFLINE="1")
    assert (ran.returncode, ran.stdout) == (4, "")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("address", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:../x"])
def test_exit_2_for_what_is_no_address(address):
    with pytest.raises(UsageError):
        fetch(address)


def test_what_the_client_raises_becomes_an_error_of_ours():
    """A failure of any other kind names itself; nothing of it is a traceback."""
    error = _refused("hf:a/b", ValueError("odd\nmore"))
    assert isinstance(error, SourceNotFound)
    assert error.faults[0].facts == ("ValueError: odd",)
    assert _offline("hf:a/b", OSError()).exit_code == 4


def test_the_recipe_of_the_example_is_that_of_its_card():
    """The YAML stands in examples/superswallow as the model card has it, with its comments."""
    example = (Path(__file__).parent.parent / "examples" / "superswallow" / "config.yml").read_text()
    assert recipe(f"# Superswallow\n\n```yaml\n{example}```\n", "README.md").text == example
