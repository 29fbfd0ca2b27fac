"""MkDocs hooks: files of the repository become pages, links follow them, and llms.txt lists the pages."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from reference import ROOT, pages

_OF_REPOSITORY = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CHANGELOG.md": "changelog.md",
    "examples/jobs/README.md": "results/jobs.md",
    "examples/third_party_method/README.md": "how-to/third-party-method.md",
}
_CARDS = ("pruningnet", "stamp", "metagraph")
_OF_REPOSITORY |= {f"src/metaprune/methods/{name}/card.md": f"reference/methods/{name}.md" for name in _CARDS}
"""Files outside docs/ that are pages: path in the repository -> page."""
_STUDIES = "benchmarks/README.md"
"""A page for each of its chapters."""
_GENERATED: dict[str, str] = {}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def study_pages() -> dict[str, str]:
    """Chapters of the studies by page: their headings rise by a level."""
    first, *chapters = re.split(r"^## ", (ROOT / _STUDIES).read_text(), flags=re.MULTILINE)
    made = {"results/studies/index.md": first}
    for chapter in chapters:
        title = chapter.partition("\n")[0]
        made[f"results/studies/{_anchor(title)}.md"] = "# " + re.sub(r"^##(#+ )", r"\1", chapter, flags=re.MULTILINE)
    return made


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


_STUDY_PAGES = study_pages()
_STUDY_OF = {  # the first page that has a heading, as links to one document mean the first
    _anchor(title): page
    for page, text in reversed(_STUDY_PAGES.items())
    for title in re.findall(r"^#+ (.+)", text, re.MULTILINE)
}
_SOURCES = {page: path for path, page in _OF_REPOSITORY.items()} | dict.fromkeys(_STUDY_PAGES, _STUDIES)


def on_config(config: Any) -> Any:
    """Add the studies to the navigation, below the results."""
    (results,) = (section["Results"] for section in config.nav if "Results" in section)
    results.append({"Studies": list(_STUDY_PAGES)})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and those of the repository."""
    _GENERATED.update(pages())
    of_repository = {page: (ROOT / path).read_text() for path, page in _OF_REPOSITORY.items()}
    for path, text in (_GENERATED | of_repository | _STUDY_PAGES).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    return with_page_links(markdown, page.file.src_uri, {file.src_uri for file in files})


def with_page_links(markdown: str, page: str, known: set[str]) -> str:
    """Rewrite relative links. Of a file that is no page, its name stays.

    Args:
        page: path in the site of what `markdown` is the text of.
        known: paths of all files of the site.
    """
    if page in _GENERATED:
        return markdown
    folder = posixpath.dirname(_SOURCES.get(page, f"docs/{page}"))

    def link(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or (not target and page not in _STUDY_PAGES):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target)) if target else _STUDIES
        in_site = _OF_REPOSITORY.get(path, path.removeprefix("docs/"))
        if path == _STUDIES:
            in_site = _STUDY_OF.get(anchor[1:], "results/studies/index.md")
        if in_site not in known:
            return f"{text} (`{path}`)" if text.strip("`") != path else f"`{path}`"
        return f"{mark}[{text}]({posixpath.relpath(in_site, posixpath.dirname(page) or '.')}{anchor})"

    parts = _CODE.split(markdown)  # code at odd places
    return "".join(part if at % 2 else _LINK.sub(link, part) for at, part in enumerate(parts))


def on_post_build(config: Any) -> None:
    """Write llms.txt (llmstxt.org): every page by section, with its first sentence, and the pages' Markdown."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section in config.nav:
        for title, inside in section.items():
            lines += [f"## {title}", "", *_entries(inside, site), ""]
    (site / "llms.txt").write_text("\n".join(lines))


def _entries(inside: Any, site: Path) -> list[str]:
    if isinstance(inside, str):
        text = _text_of(inside)
        (site / inside).parent.mkdir(parents=True, exist_ok=True)
        (site / inside).write_text(text)
        title = re.search(r"^# (.+)", text, re.MULTILINE)
        in_html_alone = "\n::: " in text  # docstrings
        written = inside.removesuffix(".md") + "/" if in_html_alone else inside
        return [f"- [{title[1] if title else inside}]({written}): {_first_sentence(text)}"]
    parts = inside if isinstance(inside, list) else list(inside.values())
    return [line for part in parts for line in _entries(part, site)]


def _text_of(page: str) -> str:
    if page in _GENERATED:
        return _GENERATED[page]
    if page in _STUDY_PAGES:
        return _STUDY_PAGES[page]
    return (ROOT / _SOURCES.get(page, f"docs/{page}")).read_text()


def _first_sentence(text: str) -> str:
    """The first sentence of prose, without links."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^[#|!<:-].*$", "", prose, flags=re.MULTILINE).strip()
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    return re.split(r"(?<=\.)\s|\n\n", prose)[0].replace("\n", " ")
