"""Documents can be read: short lines, sentences and paragraphs, few figures in a sentence, no file that does not exist.

The rules are checked here and nowhere else.
"""

import re
from pathlib import Path

import pytest
from pages import GENERATED, ROOT, prose_of

PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")] + [
    page for page in sorted((ROOT / "docs").rglob("*.md"))
]
# metagraph's page is left out until it is written anew
CARDS = [ROOT / f"src/metaprune/methods/{name}/card.md" for name in ("pruningnet", "stamp")]
READ = [*PAGES, *CARDS, *(ROOT / name for name in ("benchmarks/README.md", "examples/jobs/README.md"))]
FIGURE = re.compile(r"(?<![\w.-])\d[\d.,]*%?")
NAMED = re.compile(r"[\w/.-]+\.(?:py|toml|md)\b")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", READ, ids=_name)
def test_pages_keep_the_rules_of_prose(page):
    assert not prose_faults(prose_of(page))


def prose_faults(text: str) -> list[str]:
    """What breaks a rule, outside of tables: long lines, sentences and paragraphs, sentences full of figures."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", "\n".join(lines)))
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-#]|\d+\.) )", plain)
    sentences = [sentence for p in paragraphs for sentence in re.split(r"(?<=[.:;?!])\s", p)]
    return [
        *(line for line in lines if len(line) >= 120),
        *(p for p in paragraphs if len(p.split()) > 120),
        *(s for s in sentences if len(s.split()) >= 35 or len(FIGURE.findall(s)) > 3),
    ]


@pytest.mark.parametrize(
    "bad", ["x" * 120, "word " * 35, "Two words. " * 61, "It was 1, 2.5, 3% and 4 of them."], ids=lambda t: t[:5]
)
def test_each_rule_of_prose_is_checked(bad):
    assert prose_faults(f"A fine line.\n\n{bad}\n") and not prose_faults(f"| {bad} |\n\nIt was 1, 2.5 and 3%.\n")


@pytest.mark.parametrize("name, most", [("README.md", 120), ("ARCHITECTURE.md", 110)])
def test_first_pages_stay_short(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def _paths(text: str) -> set[str]:
    """Files of this repository that a text names: with a folder, or in backticks."""
    return {n for n in NAMED.findall(text) if "/" in n and not n.startswith(("/", ".", "http"))}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks/README.md"], ids=_name)
def test_files_in_backticks_exist(page):
    named = set().union(*map(_paths, re.findall(r"`([^`\n]+)`", prose_of(page))))
    assert not [n for n in named if not _exists(n)]


def test_files_in_comments_of_pyproject_exist():
    comments = re.findall(r"#\s(.*)", (ROOT / "pyproject.toml").read_text())
    named = set().union(*map(_paths, comments))
    assert named and not [n for n in named if not _exists(n)]


def _exists(name: str) -> bool:
    """Whether a path is one of the repository, of a package below src, or of the current run of a command."""
    roots = (ROOT, ROOT / "src", ROOT / "src/metaprune")
    return any((root / name).exists() for root in roots)


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_figures_of_learned_methods_are_those_of_the_studies(name):
    study = (ROOT / "benchmarks/README.md").read_text() + GENERATED.sub("", study_cards())
    rows = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|") and "](" in line]
    figures = {f for row in rows for f in re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)", "]", row))}
    assert len(figures) > 3 and not {f for f in figures if f not in study}


def study_cards() -> str:
    return "".join(card.read_text() for card in ROOT.glob("src/metaprune/methods/*/card.md"))


def test_the_floors_of_the_architecture_are_those_of_the_linter():
    layers = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert layers
    floors = [line.strip(' ",\n').replace("metaprune.", "") for line in layers[1].splitlines()]
    assert "```\n" + "\n".join(floors) + "\n```" in (ROOT / "ARCHITECTURE.md").read_text()


def test_modules_in_the_changelog_are_there():
    """The right-hand column of the table of moved modules."""
    table = (ROOT / "CHANGELOG.md").read_text().partition("### Moved modules")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| `")]
    named = [n for row in rows for n in re.findall(r"`([a-z_.]+)`", row) if "." in n]
    assert len(named) > 20
    assert not [n for n in named if not _exists(n.replace(".", "/") + ".py") and not _exists(n.replace(".", "/"))]
