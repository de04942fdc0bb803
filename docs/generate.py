"""Writes the generated pages: `command-line.md`, `settings.md` and `python.md` in `reference/`.

python docs/generate.py          writes them
python docs/generate.py --check  exits with status 1 if a committed page differs
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import Field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import typer.main

import dlrmctl
from dlrmctl.cli.app import whole_application
from dlrmctl.settings.config import BASELINE, SECTIONS
from dlrmctl.settings.embeddings import ONE_TABLE
from dlrmctl.settings.setting import default_of, flag_of, plain_type, shown

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Written by `python docs/generate.py`; do not edit. -->"
SETTINGS = {item.name: section for section, cls in SECTIONS.items() for item in fields(cls)}
MOST_LISTED = 10  # settings that a command lists itself; one that takes more takes all of them
BOUNDS = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
ERRORS = (dlrmctl.UserError, dlrmctl.DataError)
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def pages() -> dict[str, str]:
    """The name and text of each generated page."""
    return {"command-line.md": command_line_page(), "settings.md": settings_page(), "python.md": python_page()}


def command_line_page() -> str:
    root = typer.main.get_command(whole_application())
    parts = [
        NOTICE,
        "# Command line",
        "Each command prints its options with `--help`. The answer goes to standard output and progress to standard "
        "error. The exit status is 0 on success, 2 for a mistake that you can fix, 130 after Ctrl-C and 143 after "
        "SIGTERM; any other failure is 1.",
    ]
    for path, command in leaves(root):
        parts += command_section(path, command)
    return "\n\n".join(parts) + "\n"


def leaves(command: Any, path: tuple[str, ...] = ("dlrmctl",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, with the words that call it."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def command_section(path: tuple[str, ...], command: Any) -> list[str]:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    words = [
        *path,
        *(a.metavar if a.required else f"[{a.metavar}]" for a in arguments),
        *(f"{o.opts[-1]} {o.metavar or type_word(o)}" for o in options if o.required),
        "[OPTIONS]",
    ]
    parts = [f"## {' '.join(path)}", *help_paragraphs(command.help), f"```text\n{' '.join(words)}\n```"]
    settings = [o for o in options if o.name in SETTINGS]
    own = [o for o in options if o not in settings or len(settings) <= MOST_LISTED]
    if arguments:
        rows = [(code(a.metavar), help_text(a.help) + default_text(a)) for a in arguments]
        parts.append(table(("Argument", "Description"), rows))
    rows = [(option_text(o), help_text(o.help) + default_text(o)) for o in own if o.name != "help"]
    if rows:
        parts.append(table(("Option", "Description"), rows))
    if len(settings) > MOST_LISTED:
        parts.append("This command also takes every [setting](settings.md) as an option.")
    return parts


def help_paragraphs(text: str) -> list[str]:
    r"""The paragraphs of a help text; those that follow a line of \b are shown as they are, neighbours in one block."""
    parts: list[str] = []
    for as_is, group in groupby(text.replace("\\[", "[").split("\n\n"), lambda paragraph: paragraph.startswith("\b")):
        if not as_is:
            parts += [" ".join(paragraph.split("\n")) for paragraph in group]
            continue
        block = "\n\n".join(paragraph.removeprefix("\b\n") for paragraph in group)
        parts.append(f"```{'bash' if block.startswith('dlrmctl ') else 'toml'}\n{block}\n```")
    return parts


def option_text(option: Any) -> str:
    names = ", ".join(code(name) for name in (*reversed(option.opts), *option.secondary_opts))
    return names if option.is_flag else f"{names} {code(option.metavar or type_word(option))}"


def code(text: str) -> str:
    """Code inside a table, on one line; a bar in backticks would begin the next cell."""
    text = text.replace("\n", "")
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def type_word(option: Any) -> str:
    return "PATH" if option.type_descriptor.annotation is Path else "TEXT"


def default_text(parameter: Any) -> str:
    shows_none = parameter.required or parameter.default in (None, False) or not parameter.show_default
    return "" if shows_none else f" Default: `{parameter.default}`."


def help_text(text: str | None) -> str:
    """Help as Markdown: its default, which Rich shows in brackets, as a sentence of its own."""
    text = (text or "").replace("\\[", "[")
    text = re.sub(r"\s*\[default: (.*)\]", r" Default: \1.", text)
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def settings_page() -> str:
    parts = [
        NOTICE,
        "# Settings",
        "Every setting of a run. A setting can be given as an option of `dlrmctl train` or as a key of its section in "
        "a TOML file (`--config FILE`). Defaults come first, then the file, then the options that you typed. Every run "
        "writes its complete settings to `run.toml`; giving that file to `--config` repeats the run.",
    ]
    for section, cls in (SECTIONS | BASELINE).items():
        hints = get_type_hints(cls)
        rows = [
            (f"`{item.name}`", f"`{flag_of(item)}`", values_of(item, hints[item.name]), description_of(item))
            for item in fields(cls)
        ]
        parts += [f"## [{section}]", table(("Key", "Option", "Value", "Description"), rows)]
        if section == "embeddings":
            names = ", ".join(f"`{name}`" for name in ONE_TABLE)
            parts.append(
                '`[embeddings.tables.NAME]` changes single tables: `NAME` is a feature or a pattern, as in `"cat_2*"`. '
                f"It can hold {names}. See [Embedding tables](../embedding-tables.md)."
            )
        if section in BASELINE:
            parts.append(
                "These are options of `dlrmctl baseline`. A baseline has the sections `[data]`, `[train]` "
                "(for scoring) and `[baseline]`. See [Baselines](../baselines.md)."
            )
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    parts = [
        NOTICE,
        "# Python",
        "The public names of `import dlrmctl`. [Python](../python.md) has examples, and the libraries below it.",
    ]
    for name in sorted(dlrmctl.__all__, key=lambda name: (name[0].isupper(), name)):
        thing = getattr(dlrmctl, name)
        parts += object_section(f"dlrmctl.{name}", thing, "##")
        if inspect.isclass(thing) and thing.__module__.startswith("dlrmctl.api"):
            for method, function in vars(thing).items():
                if not method.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
                    parts += object_section(f"{name}.{method}", function, "###")
    return "\n\n".join(parts) + "\n"


def object_section(name: str, thing: Any, heading: str) -> list[str]:
    """Heading, signature and docstring of a class, function or property."""
    signature = "" if isinstance(thing, property) or thing in ERRORS else f"({', '.join(parameters_of(thing))})"
    shown = f"{name.removeprefix('dlrmctl.')}{signature}"
    return [f"{heading} {name}", *([f"```text\n{shown}\n```"] if signature else []), *docstring_paragraphs(thing)]


def parameters_of(thing: Any) -> list[str]:
    """The parameters with their defaults, without types: the docstring says what they are."""
    taken, starred = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name == "self" or parameter.name.startswith("_"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            taken.append("*")
            starred = True
        stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={default_word(parameter.default)}"
        taken.append(f"{stars}{parameter.name}{default}")
    return taken


def default_word(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool | int | float | str | tuple) else "..."


def docstring_paragraphs(thing: Any) -> list[str]:
    """A docstring as Markdown: sections such as "Args:" become lists."""
    parts = []
    for paragraph in (inspect.getdoc(thing) or "").split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if not re.fullmatch(r"[A-Z][a-z]+:", head):
            parts.append(" ".join(paragraph.split("\n")))
            continue
        items: list[str] = []
        for line in inspect.cleandoc(rest).split("\n"):
            if line.startswith(" ") and items:
                items[-1] += f" {line.strip()}"
            elif head in ("Returns:", "Yields:") and items:
                items[-1] += f" {line}"
            else:
                items.append(line)
        listed = [re.sub(r"^((?:\w+(?:, )?)+): ", r"`\1`: ", item) if head != "Returns:" else item for item in items]
        parts += [f"**{head.rstrip(':')}**", "\n".join(f"- {item}" for item in listed)]
    return parts


def values_of(item: Field[Any], hint: Any) -> str:
    """What a setting may be: its choices, or its type and bounds."""
    if choices := item.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = plain_type(hint)
    name = "widths, such as `512-256-16`" if get_origin(kind) is tuple else TYPES[kind]
    bounds = [f"{BOUNDS[b]} {bound:,}" for b, bound in item.metadata["bounds"].items()]
    return ", ".join([name, *bounds])


def description_of(item: Field[Any]) -> str:
    default = default_of(item)
    return help_text(item.metadata["help"]) + ("" if default is None else f" Default: `{shown(default)}`.")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def main() -> int:
    differing = [
        name
        for name, text in pages().items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for name in differing:
            print(f"docs/reference/{name} is out of date; run: python docs/generate.py", file=sys.stderr)
        return 1 if differing else 0
    for name in differing:
        (REFERENCE / name).write_text(pages()[name], encoding="utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
