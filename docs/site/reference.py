"""Pages of the reference, made from what they are about: dataclasses, docstrings, the registry of methods."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaprune
from metaprune.cli.main import verbs
from metaprune.core import errors
from metaprune.cost.metrics import cost_metric
from metaprune.protocol.card import field_docstrings, options_table
from metaprune.protocol.registry import method_names, method_spec
from metaprune.runs.config import RunConfig
from metaprune.runs.schema import Record
from metaprune.values import Budget

ROOT = Path(__file__).parents[2]


def pages() -> dict[str, str]:
    """Write every generated page: path in the site -> Markdown."""
    made = {f"reference/api/{slug(topic)}.md": api_page(topic, names) for topic, names in topics().items()}
    return made | {
        "reference/cli.md": cli_page(),
        "reference/recipes.md": recipes_page(),
        "reference/record.md": record_page(),
        "reference/methods/index.md": methods_page(),
        "how-to/troubleshooting.md": troubleshooting_page(),
    }


def slug(title: str) -> str:
    return title.replace(" ", "-")


def topics() -> dict[str, list[str]]:
    """Public names by topic, as the table of docs/stability.md has them; a test holds that it names them all."""
    rows = re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", (ROOT / "docs/stability.md").read_text(), re.MULTILINE)
    return {topic: [n for n in re.findall(r"`(\w+)`", cell) if n in metaprune.__all__] for topic, cell in rows}


def api_page(topic: str, names: list[str]) -> str:
    """One directive for each name; mkdocstrings puts its signature and docstring there."""
    listed = ", ".join(f"`{name}`" for name in names)
    return "\n".join(
        [f"# {topic.capitalize()}", "", f"{listed}.", "", *(f"::: metaprune.{name}" for name in names), ""]
    )


def cli_page() -> str:
    """Verbs of the command line with their arguments, from the dataclasses that parse them."""
    lines = ["# Command line", "", "`metaprune VERB --help` says the same in a terminal.", ""]
    for name, kind in verbs().items():
        about = inspect.getdoc(kind) or ""
        lines += [f"## metaprune {name}", "", about, "", *_verb_table(kind), ""]
    return "\n".join(lines)


def _verb_table(kind: type) -> list[str]:
    hints, meanings = typing.get_type_hints(kind, include_extras=True), field_docstrings(kind)
    rows = ["| argument | type | default | meaning |", "|---|---|---|---|"]
    for f in dataclasses.fields(kind):
        extras = [x for x in getattr(hints[f.name], "__metadata__", ()) if getattr(x, "name", None)]
        flag = (extras[0].name if extras else f.name).replace("_", "-")
        shown = f"`{flag.upper()}`" if "Positional" in str(f.type) else f"`--{flag}`"
        rows.append(f"| {shown} | {type_name(hints[f.name])} | {_default(f)} | {_cell(meanings.get(f.name, ''))} |")
    return rows if len(rows) > 2 else []


def recipes_page() -> str:
    """Keys of a recipe: type, default, range and meaning, from the dataclasses that read it."""
    lines = [
        "# Recipe keys", "",
        "A recipe is TOML. Each table below is one of its tables; `--set train.epochs=3` sets any key.",
        "An unknown key, a wrong type or a number out of range is an error that names the key.", "",
        "## Top level", "", *_config_table(RunConfig), "",
    ]  # fmt: skip
    lines += ["## [budget]", "", "Upper bounds, each a number or a share as `50%`. At least one is needed.", ""]
    lines += [*(f"- `{metric}`: {cost_metric(metric).axis_title}" for metric in Budget.key_types()), ""]
    for path, kind in _tables(RunConfig, ""):
        lines += [f"## [{path}]", "", (inspect.getdoc(kind) or "").partition("\n")[0], "", *_config_table(kind), ""]
    return "\n".join(lines)


def _tables(kind: type, prefix: str) -> Iterator[tuple[str, type]]:
    """Nested tables of a config; `[[also]]` holds more of `[model]`."""
    for name, hint in typing.get_type_hints(kind).items():
        for inner in [k for k in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(k)]:
            if name != "also":
                yield f"{prefix}{name}", inner
                yield from _tables(inner, f"{prefix}{name}.")


def _config_table(kind: type) -> list[str]:
    hints, ranges = typing.get_type_hints(kind), checked_ranges(kind)
    meanings = class_attributes(kind) | field_docstrings(kind)
    rows = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    for f in dataclasses.fields(kind):
        inner = [k for k in (hints[f.name], *typing.get_args(hints[f.name])) if dataclasses.is_dataclass(k)]
        if not (inner or hints[f.name] is Budget):
            about = f"{_default(f)} | {ranges.get(f.name, '')} | {_cell(meanings.get(f.name, ''))}"
            rows.append(f"| `{f.name}` | {type_name(hints[f.name])} | {about} |")
    return rows


def checked_ranges(kind: type) -> dict[str, str]:
    """Read ranges off the calls of `require_number` in a dataclass's `__post_init__`: the checks are the truth."""
    source = textwrap.dedent(inspect.getsource(kind))
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and _is_named(n.func, "require_number")]
    found, space = {}, vars(sys.modules[kind.__module__])
    for call in calls:
        if isinstance(call.args[1], ast.Attribute):
            bounds = [eval(ast.unparse(bound), space) for bound in call.args[2:]]
            is_open = any(k.arg == "open_low" for k in call.keywords)
            low = f"{'>' if is_open else '>='} {bounds[0]:g}"
            found[call.args[1].attr] = low + (f", <= {bounds[1]:g}" if len(bounds) > 1 else "")
    return found


def _is_named(function: ast.expr, name: str) -> bool:
    return isinstance(function, ast.Name) and function.id == name


def class_attributes(kind: type) -> dict[str, str]:
    """Meanings that stand in a class's docstring as `name: meaning`, continued on indented lines."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(kind) or "").splitlines():
        if match := re.match(r"([a-z_]+): (.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith("    "):
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return found


def record_page() -> str:
    """Fields of `record.json`, by the dataclasses that write it."""
    lines = ["# Record", "", inspect.getdoc(Record) or "", "", *_fields_table(Record), ""]
    kinds = {k.__name__: k for h in typing.get_type_hints(Record).values() for k in (h, *typing.get_args(h))
             if dataclasses.is_dataclass(k)}  # fmt: skip
    for name, kind in kinds.items():
        lines += [f"## {name}", "", (inspect.getdoc(kind) or "").partition("\n\n")[0], "", *_fields_table(kind), ""]
    return "\n".join(lines)


def _fields_table(kind: type) -> list[str]:
    hints, meanings = typing.get_type_hints(kind), class_attributes(kind) | field_docstrings(kind)
    rows = [f"| `{f.name}` | {type_name(hints[f.name])} | {_cell(meanings.get(f.name, ''))} |"
            for f in dataclasses.fields(kind)]  # fmt: skip
    return ["| field | type | meaning |", "|---|---|---|", *rows]


def methods_page() -> str:
    """All built-in methods with their options."""
    lines = ["# Methods", "", "What each is worth: [results](../../results.md).", ""]
    for name in method_names():
        spec = method_spec(name)
        marks = [word for word, is_so in (("learned", spec.learned), ("needs data", spec.needs_data())) if is_so]
        lines += [f"## {name}", "", spec.about(), "", *([f"*{', '.join(marks)}*", ""] if marks else [])]
        if spec.card is not None:
            lines += [f"[Its page]({name}.md) has the options and what was measured.", ""]
        elif dataclasses.is_dataclass(kind := spec.config_class()) and dataclasses.fields(kind):
            lines += [options_table(kind).partition("\n\n")[0], ""]
    return "\n".join(lines)


def troubleshooting_page() -> str:
    """Every error and warning: what it says, cause, fix, and the messages in the source."""
    said = messages()
    lines = ["# Troubleshooting", "", "Every error is a `MetapruneError`. Its message names cause and next step.",
             "Paste a part of a message into the search of this site to find it.", ""]  # fmt: skip
    for name, kind in error_classes().items():
        about, cause, fix = error_parts(kind)
        lines += [f"## {name}", "", about, "", f"**Cause.** {cause}", "", f"**Fix.** {fix}", ""]
        if said.get(name):
            lines += ['??? note "Its messages"', "", *(f"    - `{text}`" for text in said[name]), ""]
    return "\n".join(lines)


def error_classes() -> dict[str, type]:
    """All errors and warnings but their root, in the order of the file."""
    kinds = {n: k for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, Exception)}
    return {n: k for n, k in kinds.items() if k.__module__ == errors.__name__ and k is not errors.MetapruneError}


def error_parts(kind: type) -> tuple[str, str, str]:
    """(what it says, cause, fix) of an error class's docstring."""
    text = inspect.getdoc(kind) or ""
    about, _, rest = text.partition("\n\n")
    found = re.findall(r"^(Cause|Fix): (.*?)(?=^Fix: |\n\n|\Z)", rest, re.DOTALL | re.MULTILINE)
    parts = {key: " ".join(text.split()) for key, text in found}
    return about, parts["Cause"], parts["Fix"]


def messages() -> dict[str, list[str]]:
    """Texts that the source raises or warns with, by class; what is filled in is `…`."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "src/metaprune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if isinstance(node.func, ast.Name) and node.func.id in error_classes():
                found.setdefault(node.func.id, set()).add(_template(node.args[0]))
            if _is_warn(node.func) and len(node.args) > 1 and isinstance(node.args[1], ast.Name):
                found.setdefault(node.args[1].id, set()).add(_template(node.args[0]))
    return {name: sorted(texts - {""}) for name, texts in found.items()}


def _is_warn(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr == "warn"


def _template(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        text = str(message.value)
    elif isinstance(message, ast.JoinedStr):
        text = "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in message.values)
    else:
        return ""
    return " ".join(text.replace("`", "'").split())


def type_name(hint: Any) -> str:
    """A type as readers write it: `int`, `str or none`, `a, b or c` for choices."""
    if typing.get_origin(hint) is typing.Annotated:
        return type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.Literal in map(typing.get_origin, typing.get_args(hint)):  # a choice or something else
        return ", ".join(type_name(part) for part in typing.get_args(hint))
    text = str(hint) if typing.get_args(hint) else getattr(hint, "__name__", str(hint))
    text = re.sub(r"\b(?:[a-z_]+\.)+", "", text).replace("NoneType", "None")
    return f"`{text}`".replace("|", "\\|").replace(" \\| None`", "` or none")


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
        return "" if value in ({}, ()) or dataclasses.is_dataclass(value) else f"`{value!r}`"
    if f.default is dataclasses.MISSING:
        return "(required)"
    return "" if f.default in (None, ()) else f"`{f.default if isinstance(f.default, Path) else repr(f.default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
