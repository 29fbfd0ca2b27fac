"""The site's generated pages say what the code says."""

import json
import re

import notebooks
import pytest
import reference
from pages import ROOT, code_of

import metaprune
from metaprune.core.errors import TrainingDivergedError
from metaprune.train.config import TrainConfig


def test_the_api_pages_name_every_public_name_once():
    named = [name for names in reference.topics().values() for name in names]
    assert sorted(named) == sorted({*metaprune.__all__} - {"__version__"})


@pytest.mark.parametrize("name, kind", reference.error_classes().items())
def test_every_error_says_cause_and_fix(name, kind):
    assert all(part.strip() for part in reference.error_parts(kind)), name


def test_messages_are_those_of_the_source():
    said = reference.messages()
    assert any("no recipe" in text for text in said["ConfigError"])
    assert any("nothing is cut" in text for text in said["NoEffectWarning"])
    assert TrainingDivergedError.__name__ in said


def test_ranges_are_those_that_are_checked():
    ranges = reference.checked_ranges(TrainConfig)
    assert ranges["momentum"] == ">= 0, <= 1" and ranges["epochs"].startswith("> 0")
    page = reference.recipes_page()
    assert "| `momentum` | `float` | `0.9` | >= 0, <= 1 |" in page
    assert all(f"## [{table}]" in page for table in ("model", "data.augment", "train", "recover.train", "constraints"))


def test_pages_of_the_command_line_and_the_methods_are_whole():
    page = reference.cli_page()
    assert all(f"## metaprune {verb}\n" in page for verb in ("prune", "fit", "search", "adapt", "compare", "data"))
    assert "| `--run` |" in page and "| `RECIPE` |" in page
    assert "## pruningnet" in reference.methods_page() and "| `p` | `2` |" in reference.methods_page()


def test_links_follow_files_into_the_site():
    pytest.importorskip("mkdocs", reason="pip install 'metaprune[docs]'")
    from hooks import with_page_links

    known = {"index.md", "guide.md", "demo.png", "results/studies/stamp.md", "reference/methods/stamp.md"}
    code = "\n```python\nmodel[2](x)\n```\n"
    text = "[a](docs/guide.md#x) ![b](docs/demo.png) [c](benchmarks/demo/record.json) [d](https://e.org)" + code
    expected = "[a](guide.md#x) ![b](demo.png) c (`benchmarks/demo/record.json`) [d](https://e.org)" + code
    assert with_page_links(text, "index.md", known) == expected
    card = "[study](../../../../benchmarks/README.md#stamp)"
    assert with_page_links(card, "reference/methods/stamp.md", known) == "[study](../../results/studies/stamp.md#stamp)"


@pytest.mark.parametrize("name", notebooks.TUTORIALS)
def test_notebooks_are_their_tutorials(name):
    text = (ROOT / notebooks.FOLDER / f"{name}.ipynb").read_text()
    assert text == notebooks.notebook(name), "run: python docs/site/notebooks.py"


@pytest.mark.parametrize("name", notebooks.TUTORIALS)
def test_notebooks_hold_the_code_that_the_tests_run(name):
    """Python cells as they stand, and the other cells in the same order as the page's blocks."""
    cells = json.loads(notebooks.notebook(name))["cells"]
    code = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]
    assert [c for c in code if c[0] not in "!%"] == [c.strip() for c in code_of(f"docs/tutorials/{name}.md")]
    assert any(c.startswith("!metaprune ") for c in code) and any(c.startswith("%%writefile ") for c in code)
    for cell in cells:
        for target in re.findall(r"\]\((?!http)([^)#]+)", "".join(cell["source"]) * (cell["cell_type"] == "markdown")):
            made = (ROOT / notebooks.FOLDER / target).resolve()
            assert made.exists() or made in {ROOT / "docs" / page for page in reference.pages()}
