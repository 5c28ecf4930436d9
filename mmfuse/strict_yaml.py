"""Strict, safe YAML, and dataclasses built from it."""

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from mmfuse.errors import UserError, unknown_name
from mmfuse.files import read_regular, write_whole

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Returns a nested value with tuples as lists, as YAML and JSON write them."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without what surprises: duplicate keys, aliases and tags are errors, `1e-4` is a number, and of words
    only `true` and `false` are switches, as in YAML 1.2: `off` and `no` are text.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, message = self.peek_event(), ""
        if isinstance(event, yaml.AliasEvent):
            message = f"the alias '*{event.anchor}' is not allowed; write it out"
        elif getattr(event, "tag", None):
            message = f"the tag {event.tag!r} is not allowed; write a plain value"
        if message:
            raise yaml.constructor.ConstructorError(None, None, message, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                message = "a key is a list or a mapping; use text"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            if key.value in seen:
                message = f"the key {key.value!r} stands twice; remove one"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_SWITCH = "tag:yaml.org,2002:bool"
_StrictLoader.yaml_implicit_resolvers = {
    letter: [(tag, form) for tag, form in resolvers if tag != _SWITCH]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_SWITCH, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parses strict YAML; `where` names its place in errors.

    Raises:
        UserError: a syntax error, a duplicate key, an alias or a tag.
    """
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping from a strict YAML file.

    Raises:
        UserError: the file is missing, isn't text, or holds something else than a mapping.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give a YAML file") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping; write 'key: value' lines")
    return values


def build(kind: type[T], values: object, where: str, place: str = "") -> T:
    """Builds a dataclass from plain values, strictly; nested dataclasses, tuples and literals included.

    In errors, `where` names the file and `place` the keys in it that lead to the values, such as train.lr.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, a wrong type, or what the dataclass
            itself doesn't allow.
    """
    here, inner = (f"{where}: {place}", f"{place}.") if place else (where, "")
    if not isinstance(values, dict):
        raise UserError(f"{here}: {values!r} is not a mapping; write 'key: value' lines")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(f"{here}: {unknown_name(key, fields, 'key')}")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{here}: the key {name!r} is missing; add it")
    built = {key: _convert(hints[key], value, where, f"{inner}{key}") for key, value in values.items()}
    try:
        return kind(**built)
    except UserError as error:
        raise UserError(f"{where}: {inner}{error}") from None


def _convert(hint: Any, value: Any, where: str, place: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [kind for kind in args if kind is not type(None)]
        kinds.sort(key=lambda kind: (get_origin(kind) in (dict, Mapping)) != isinstance(value, dict))
        for kind in kinds:
            with suppress(UserError):
                return _convert(kind, value, where, place)
        return _convert(kinds[0], value, where, place)  # which tells what is wrong with the likely one
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, where, place)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{where}: {place}: {unknown_name(value, args, 'value')}")
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {str(k): _convert(args[1], v, where, f"{place}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_convert(k, v, where, place) for k, v in zip(kinds, value, strict=True))
        raise UserError(f"{where}: {place}: {value!r} has {len(value)} entries; give {len(kinds)}")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:
            return float(value)
        raise UserError(f"{where}: {place}: {value!r} is not a finite number; give one")
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    wanted = {
        float: "a number; write one such as 0.5",
        int: "a whole number; write one such as 2",
        str: "text; put it in quotes",
        bool: "a switch; write true or false",
        dict: "a mapping; write 'key: value' lines",
    }.get(origin or hint, "a list; write one such as [a, b]")
    raise UserError(f"{where}: {place}: {value!r} is not {wanted}")


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Returns `values` with `key.inner=value` assignments made, each value read as YAML.

    Raises:
        UserError: an assignment has no `=`, or goes through something that isn't a mapping.
    """
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UserError(f"{assignment!r} is not an assignment; write key=value, such as train.epochs=20")
        *outer, last = path.split(".")
        place = result
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise UserError(f"{assignment!r}: {key!r} holds a value, not keys; set {key}=value")
        place[last] = parse_yaml(text, assignment)
    return result


def save_yaml(path: Path, values: dict[str, Any]) -> None:
    """Writes plain values as YAML, whole or not at all."""
    write_whole(path, yaml.safe_dump(values, sort_keys=False).encode())
