"""Writes the parts of docs/reference that are made from the code: `python scripts/generate_reference.py [--check]`.

A page is prose with marked places; what stands between `<!-- generated: NAME -->`
and `<!-- end -->` is replaced. The JSON Schemas are whole files. With --check
nothing is written, and the exit code is 1 if something is stale.

    cli       every command and option, from click's tree
    errors    the tree of balloonvq.errors, and all classes that an error may have
    json      the documents and their fields, from the dataclasses of DOCUMENTS
    c-api     the interface of the C core, from the headers
    design-api  what a locking design may call, from the docstrings
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

import balloonctl
import balloonvq
from balloonctl import failures
from balloonvq import counters, errors
from balloonvq.bench import compare, results

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs/reference"
SCHEMAS = REFERENCE / "schemas"

#: The headers in reading order.
HEADERS = (
    "guest_memory.h",
    "memory_guard.h",
    "virtqueue.h",
    "chain.h",
    "discard.h",
    "balloon_device.h",
    "worker.h",
    "histogram.h",
    "page_allocator.h",
    "explore.h",
    "barrier.h",
)


# ---- JSON documents ---------------------------------------------------------

#: The modules whose public dataclasses are documents, or objects inside one.
DOCUMENTS = (counters, results, compare)


def field_docs(source: str) -> dict[str, dict[str, str]]:
    """Class name -> field name -> the string that stands below the field."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields: dict[str, str] = {}
        last = ""
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                last = item.target.id
            elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and last:
                fields[last] = " ".join(str(item.value.value).split())
                last = ""
        found[node.name] = fields
    return found


def kinds_of_documents() -> Iterator[type]:
    """Every dataclass that is a document or stands inside one."""
    for module in DOCUMENTS:
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield kind


def documents() -> dict[str, type]:
    """Schema name -> dataclass, for every document that has a schema name of its own."""
    found: dict[str, type] = {}
    for kind in kinds_of_documents():
        for field in dataclasses.fields(kind):
            if field.name == "schema" and isinstance(field.default, str):
                found[field.default] = kind
    return dict(sorted(found.items()))


def all_field_docs() -> dict[str, dict[str, str]]:
    """`field_docs` of all modules with documents."""
    return {
        name: fields for module in DOCUMENTS for name, fields in field_docs(inspect.getsource(module)).items()
    }


def schema_of(name: str, kind: type) -> dict[str, Any]:
    """The JSON Schema of a document; field docstrings become descriptions."""
    docs = all_field_docs()
    schema: dict[str, Any] = msgspec.json.schema(kind)
    for class_name, definition in schema.get("$defs", {}).items():
        definition["description"] = definition.get("description", "").replace("``", "").strip()
        for field, text in docs.get(class_name, {}).items():
            if field in definition.get("properties", {}):
                definition["properties"][field]["description"] = text
        if "schema" in definition.get("properties", {}):
            constant = definition["properties"]["schema"].pop("default")
            definition["properties"]["schema"] = {"const": constant}
            definition["required"] = sorted({*definition.get("required", []), "schema"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema}


def error_schema() -> dict[str, Any]:
    """The JSON Schema of an error, which is a class tree and no dataclass."""
    text = {"type": "string"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "balloonctl/error/1",
        "description": "An error: on stderr with --json, and in QMP's error object.",
        "type": "object",
        "required": ["schema", "error", "what", "why", "hint", "exit_code"],
        "properties": {
            "schema": {"const": "balloonctl/error/1"},
            "error": text
            | {
                "description": "The class: one of the examples, which are all that there are in this version.",
                "examples": sorted({*(kind.__name__ for kind, _ in error_classes()), *failures.OTHER_ERRORS}),
            },
            "what": text | {"description": "What happened."},
            "why": text | {"description": "The state that explains it; may be empty."},
            "hint": text | {"description": "What to do next; may be empty."},
            "exit_code": {"type": "integer", "description": "The exit code of a command that ends so."},
            "where": text | {"description": "In a script: its file and line."},
            "file": text | {"description": "In a script: its name, stdin or -c."},
            "line": {"type": "integer", "description": "In a script: the line's number."},
            "command": text | {"description": "In a script: the line."},
        },
    }


def schema_file(name: str) -> str:
    """The file name of a schema: balloonctl/status/1 is in status-1.json."""
    return "-".join(name.split("/")[1:]) + ".json"


def schema_files() -> dict[Path, str]:
    """Every schema file and what it should hold."""
    schemas = {name: schema_of(name, kind) for name, kind in documents().items()}
    schemas["balloonctl/error/1"] = error_schema()
    files: dict[Path, str] = {}
    for name, schema in schemas.items():
        files[SCHEMAS / schema_file(name)] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return files


def type_name(annotation: str) -> str:
    """A Python annotation in JSON's words."""
    words = {
        "str": "string",
        "int": "integer",
        "float": "number",
        "bool": "boolean",
        "None": "null",
        "tuple[str, ...]": "array of strings",
        "dict[str, int]": "object of integers",
        "dict[str, str]": "object of strings",
        "dict[str, int | str | bool]": "object of integers, strings and booleans",
    }
    if annotation in words:
        return words[annotation]
    if found := re.fullmatch(r"tuple\[(\w+), \.\.\.\]", annotation):
        return f"array of {words[found[1]] + 's' if found[1] in words else found[1]}"
    if found := re.fullmatch(r"Literal\[(.*)\]", annotation):
        return ", ".join(
            f"`{word}`" for word in re.findall(r'"([^"]+)"|\'([^\']+)\'', found[1]) for word in word if word
        )
    if " | " in annotation:
        return " or ".join(type_name(part) for part in annotation.split(" | "))
    alias = next((vars(module)[annotation] for module in DOCUMENTS if annotation in vars(module)), None)
    if alias is not None and not isinstance(alias, type):
        return type_name(str(alias).removeprefix("typing."))
    return annotation


def json_reference() -> str:
    """A table of fields for each document and each object inside one."""
    docs = all_field_docs()
    names = {kind: name for name, kind in documents().items()}
    inner = [kind for kind in kinds_of_documents() if kind not in names]
    lines: list[str] = []
    kinds: list[type] = [*names, *inner]
    for kind in kinds:
        title = f"`{names[kind]}`" if kind in names else kind.__name__
        about = (
            (inspect.getdoc(kind) or "").partition(": ")[2] if kind in names else inspect.getdoc(kind) or ""
        )
        lines += [
            f"### {title}",
            "",
            about[:1].upper() + about[1:],
            "",
            "| field | type | meaning |",
            "|---|---|---|",
        ]
        for field in dataclasses.fields(kind):
            if field.name == "schema":
                continue
            meaning = docs[kind.__name__].get(field.name, "")
            lines.append(
                f"| `{field.name}` | {type_name(str(field.type))} | {meaning.replace('|', '&#124;')} |"
            )
        lines.append("")
    return "\n".join(lines)


# ---- errors -----------------------------------------------------------------


def error_classes() -> list[tuple[type[errors.BalloonError], int]]:
    """Every public error of both packages, and how far below the root it stands; parents first.

    Below a class those of balloonvq.errors stand in its order, then those of other modules by name.
    """
    for package in (balloonvq, balloonctl):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)

    def elsewhere(kind: type) -> tuple[bool, str]:
        other = kind.__module__ != errors.__name__
        return other, kind.__name__ if other else ""

    def walk(kind: type[errors.BalloonError], depth: int) -> Iterator[tuple[type[errors.BalloonError], int]]:
        yield kind, depth
        for child in sorted(kind.__subclasses__(), key=elsewhere):
            if not child.__name__.startswith("_"):
                yield from walk(child, depth + 1)

    return list(walk(errors.BalloonError, 0))


def errors_reference() -> str:
    """The tree, then a line for each class."""
    tree = re.search(r"::\n\n(.*?)\n\n(?=\S)", inspect.getdoc(errors) or "", re.DOTALL)
    lines = ["```text", inspect.cleandoc(tree[1]) if tree else "", "```", ""]
    lines += ["| class | exit code | meaning |", "|---|---|---|"]
    for kind, depth in error_classes():
        about = (inspect.getdoc(kind) or "").partition("\n")[0]
        where = "" if kind.__module__ == errors.__name__ else f" (`{kind.__module__}`)"
        lines.append(f"| {'&emsp;' * depth}`{kind.__name__}` | {kind.exit_code} | {about}{where} |")
    for name, (code, about) in failures.OTHER_ERRORS.items():
        lines.append(f"| `{name}` | {code} | {about} |")
    return "\n".join([*lines, ""])


# ---- the command line -------------------------------------------------------


def plain(text: str) -> str:
    """Help text as Markdown: click's no-rewrap marks become code blocks."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            paragraphs.append("```text\n" + paragraph[1:].strip("\n") + "\n```")
        else:
            paragraphs.append(escape(" ".join(paragraph.split())))
    return "\n\n".join(paragraphs)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", text)


def command_reference(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    """Usage, help and options of a command, then of its subcommands."""
    path = context.command_path
    yield f"{'#' * depth} {path}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{path} {usage}\n```\n"
    if command.help:
        yield plain(command.help) + "\n"
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and not getattr(parameter, "hidden", False):
            rows.append(f"| `{record[0].replace('|', chr(92) + '|')}` | {escape(record[1])} |")
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n"
    if command.epilog:
        yield plain(command.epilog) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inside = click.Context(child, info_name=name, parent=context, **child.context_settings)
                yield from command_reference(child, inside, depth + 1)


def cli_reference() -> str:
    """Every command, from click's tree."""
    module = importlib.import_module("balloonctl.main")
    command = next(value for value in vars(module).values() if isinstance(value, click.Group))
    settings = dict(command.context_settings) | {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name="balloonctl", **settings)
    return "\n".join(command_reference(command, context, 2))


# ---- the C core -------------------------------------------------------------


def header_pieces(text: str) -> tuple[str, list[str]]:
    """The comment that opens a header, and its declarations, each with the comment above it."""
    opening = re.search(r"/\*\n(.*?)\*/\n#ifndef", text, re.DOTALL)
    about = "\n".join(re.sub(r"^ \* ?", "", line) for line in opening[1].splitlines()) if opening else ""
    body = text.partition("#define BALLOONVQ_")[2].partition("\n")[2].rpartition("#endif")[0]
    body = re.sub(r"^#include .*\n", "", body, flags=re.MULTILINE)
    body = re.sub(r"^/\* -{3,}.*\*/\n", "", body, flags=re.MULTILINE)
    pieces: list[str] = []
    depth = 0
    current: list[str] = []
    for line in body.splitlines():
        depth += line.count("{") - line.count("}")
        if not line.strip() and depth == 0 and not _inside_comment(current):
            if current:
                pieces.append("\n".join(current))
            current = []
        else:
            current.append(line)
    if current:
        pieces.append("\n".join(current))
    return about.strip(), pieces


def _inside_comment(lines: list[str]) -> bool:
    text = "\n".join(lines)
    return text.count("/*") > text.count("*/")


def piece_title(piece: str) -> str:
    """The names that a piece declares, or an empty string."""
    code = re.sub(r"/\*.*?\*/", " ", piece, flags=re.DOTALL)
    functions = re.findall(r"\b([a-z]\w*)\s*\([^()]*\)\s*(?:;|\{)", code)
    if functions:
        return ", ".join(f"`{name}`" for name in dict.fromkeys(functions))
    if kinds := re.findall(r"^(struct|enum) (\w+)\s*[{;]", code, re.MULTILINE):
        return ", ".join(f"`{kind} {name}`" for kind, name in kinds)
    macros = re.findall(r"^#define (\w+)", code, re.MULTILINE)
    return ", ".join(f"`{name}`" for name in macros[:3]) + (" …" if len(macros) > 3 else "")


def c_reference() -> str:
    """Every header in reading order: what it is about, then its declarations."""
    lines: list[str] = []
    for name in HEADERS:
        about, pieces = header_pieces((ROOT / "csrc" / name).read_text())
        lines += [f"## {name}", "", "```text", about, "```", ""]
        for piece in pieces:
            lines += [f"### {piece_title(piece)}", "", "```c", piece.replace("\t", "        "), "```", ""]
    return "\n".join(lines)


# ---- what a locking design may call ------------------------------------------

#: Class -> members that are not a design's business.
DESIGN_API: dict[str, tuple[str, ...]] = {
    "balloonvq.driver.designs.base.Design": (),
    "balloonvq.driver.balloon.Balloon": ("kernel",),
    "balloonvq.driver.balloon.PageList": (),
    "balloonvq.guest.pages.PfnArray": (),
    "balloonvq.runtime.Mutex": (),
    "balloonvq.runtime.Shared": (),
    "balloonvq.runtime.WaitQueue": ("attach",),
    "balloonvq.runtime.Runtime": ("work", "spawn", "this_task"),
}


def design_api() -> str:
    """A heading a class, a line a member: its call and the first paragraph of its docstring."""

    def cell(text: str) -> str:
        return text.replace("|", chr(92) + "|")

    lines: list[str] = []
    for path, left_out in DESIGN_API.items():
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        lines += [f"## {name}", "", "```text", inspect.getdoc(kind) or "", "```", ""]
        lines += ["| member | meaning |", "|---|---|"]
        words = field_docs(inspect.getsource(importlib.import_module(module)))[name]
        lines += [f"| `{word}` | {cell(text)} |" for word, text in words.items() if word not in left_out]
        for member, value in vars(kind).items():
            public = not member.startswith("_") and member not in left_out
            if public and (callable(value) or isinstance(value, property)):
                about = " ".join((inspect.getdoc(value) or "").split())
                call = member if isinstance(value, property) else f"{member}{_call(value)}"
                lines.append(f"| `{call.replace('|', chr(92) + '|')}` | {cell(about)} |")
        lines.append("")
    return "\n".join(lines)


def _call(function: Callable[..., Any]) -> str:
    """A function's arguments and result as one writes them."""
    signature = inspect.signature(function)
    inside = [str(parameter) for name, parameter in signature.parameters.items() if name != "self"]
    result = signature.return_annotation
    return f"({', '.join(inside).replace(chr(39), '')})" + (
        "" if result in {"None", None} else f" -> {result}"
    )


# ---- pages ------------------------------------------------------------------

GENERATORS: dict[str, Callable[[], str]] = {
    "cli": cli_reference,
    "errors": errors_reference,
    "json": json_reference,
    "c-api": c_reference,
    "design-api": design_api,
}
PLACE = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page with a generated place, and what it should hold."""
    return {
        page: PLACE.sub(
            lambda place: f"{place[1]}\n{GENERATORS[place[2]]().strip()}\n\n{place[3]}", page.read_text()
        )
        for page in sorted(REFERENCE.glob("*.md"))
        if PLACE.search(page.read_text())
    }


def stale() -> dict[Path, str]:
    """The files that do not hold what they should, with what they should hold."""
    wanted = schema_files() | pages()
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def main(arguments: list[str]) -> int:
    """Writes what is stale, or with --check names it."""
    changed = stale()
    SCHEMAS.mkdir(parents=True, exist_ok=True)
    for path, text in changed.items():
        if arguments != ["--check"]:
            path.write_text(text)
        print(path.relative_to(ROOT))
    return 1 if changed and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
