"""A configuration as a command line, its fields in the groups of the classes that introduce them.

tyro reads the fields; what is added is order: a recipe has sixty of them, most of them rarely used.
"""

import argparse
import ast
import copy
import dataclasses
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

C = TypeVar("C")


def parse(
    config: type[C],
    arguments: Sequence[str] | None = None,
    groups: Mapping[type, str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """Read the command line.

    Args:
        config: a dataclass whose fields have docstrings; those with a default factory are
            dictionaries, to which the command line adds.
        arguments: None for those of this process.
        groups: titles of the classes whose own fields are a group, in the order of the help; all
            fields are of one of them. None for a single group.
        settings: other defaults, by the name of `--setting` that asks for them.
    """
    module = sys.modules[config.__module__]
    about: dict[str, Any] = {
        "prog": f"python -m {module.__spec__.name}" if module.__spec__ else None,
        "description": inspect.getdoc(module) or "",
        "args": arguments,
    }
    if groups is None:
        return tyro.cli(config, **about)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--setting")
    other = (settings or {}).get(first.parse_known_args(arguments)[0].setting, {})
    hints = get_type_hints(config, include_extras=True)
    told = dict(_docstrings(config))
    parts: dict[str, list[Any]] = {title: [] for title in groups.values()}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        introduced = (base for base in reversed(config.__mro__) if _introduces(base, field.name))
        title = groups[next(introduced)]
        kind = _shown(hints[field.name], field, told.get(field.name, ""))
        shown = copy.copy(field)
        shown.default = other.get(field.name, field.default)
        if field.default_factory is not dataclasses.MISSING:
            shown.default_factory = dict  # with entries, tyro would make a flag of each
        parts[title].append((field.name, kind, shown))
    sections = {title: dataclasses.make_dataclass(title, part) for title, part in parts.items()}
    together = dataclasses.make_dataclass("Arguments", list(sections.items()))
    given = tyro.cli(together, config=(tyro.conf.OmitArgPrefixes,), **about)
    values = {k: v for title in sections for k, v in vars(getattr(given, title)).items()}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory() | values[field.name]
    return config(**values)


def _introduces(base: type, name: str) -> bool:
    return name in vars(base).get("__annotations__", ())


def _shown(hint: Any, field: Any, text: str) -> Any:
    """The type of a field, with what its help says. A default that is nothing is told in words."""
    options: dict[str, Any] = {"help": text}
    if field.default is None or field.default == ():
        options["help_behavior_hint"] = ""
    if field.default_factory is not dataclasses.MISSING:
        entries = field.default_factory().items()
        default = ", ".join(f"{name} {value}" for name, value in entries)
        options["help_behavior_hint"] = f"(default: {default or 'none'})"
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        (kind,) = (kind for kind in get_args(hint) if kind is not type(None))
        choices = f"{{{','.join(map(str, get_args(kind)))}}}"
        options["metavar"] = kind.__name__.upper() if isinstance(kind, type) else choices
    return Annotated[hint, tyro.conf.arg(**options)]


def _docstrings(config: type) -> Iterator[tuple[str, str]]:
    """Each field's docstring, those of a subclass last."""
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
                continue
            if isinstance(text.value, ast.Constant) and isinstance(field.target, ast.Name):
                yield field.target.id, " ".join(str(text.value.value).split())
