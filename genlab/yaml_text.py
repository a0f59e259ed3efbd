"""YAML for settings: text and choices as they were typed, and limits on what is read.

YAML makes a boolean of ``no`` and ``on``, nothing of ``null``, and a number of ``1e3`` and ``007``.
Where a schema wants one of several words or text, what was typed counts: ``mixed_precision: no`` is
the precision ``no``, in a file as on the command line. Only an unquoted boolean in the place of a
whole text is refused in a file, as it may be meant. Everything else is plain YAML 1.1, but ``1e-4``
is a number, there are no dates, and a key that stands twice is refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from genlab import schema as schemas
from genlab.errors import ConfigError

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
"""What stands for null."""

_TEXT, _BOOL, _FLOAT, _NULL, _DATE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "float", "null", "timestamp")
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml tells no types
    """Plain values alone: nothing in a file can make it build an object."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice: the last one would win without a word."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1 and name != "<<"]:
            raise yaml.MarkedYAMLError(
                problem=f"duplicate key {twice[0]!r}", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)$"
        r"|[-+]?[0-9][0-9_]*\.$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse(text: str, where: str, hint: Any = None) -> Any:
    """Read one YAML document into plain dicts, lists, texts, numbers, booleans and None.

    Args:
        text: the document.
        where: where it stands, as messages begin.
        hint: the type that the whole is to have, say a dataclass; None says nothing.

    Raises:
        ConfigError: it is no YAML, or holds what no setting can be.
    """
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, hint, set())
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply; write it flatter") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{where} is not valid YAML: {reason[:300]}") from error
    finally:
        loader.dispose()


def parse_value(text: str, where: str, hint: Any = None) -> Any:
    """Read the value of ``KEY=VALUE``; for text it is what was typed, without quotes around it.

    Raises:
        ConfigError: it is no YAML.
    """
    if schemas.is_textual(hint) and not (text in NULLS and not _is_word(hint, text)):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    return parse(text, where, hint)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml tells no types
    """Writes what `_Loader` reads as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out; people change one of them."""
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) == _TEXT
    return dumper.represent_scalar(_TEXT, text, style=None if plain else "'")


_Dumper.add_representer(str, _write_text)
_Dumper.add_multi_representer(Path, lambda dumper, path: _write_text(dumper, str(path)))


def dump(plain: Any) -> str:
    """Plain values as YAML that `parse` reads back; text that YAML would change is quoted."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def one_line(plain: Any) -> str:
    """A plain value on one line, as `parse` reads it back."""
    written = yaml.dump(
        plain, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return written.removesuffix("...\n").strip()


def _keep_text(
    node: yaml.Node, hint: Any, seen: set[tuple[int, str]], listed: bool = False
) -> None:
    """Mark scalars as text where the schema wants text; ``seen`` stops at aliases of itself."""
    place = (id(node), repr(hint))
    if place in seen:
        return
    seen.add(place)
    inner = schemas.without_none(hint)
    if isinstance(node, yaml.ScalarNode):
        # A boolean in the place of text is refused, as it may be meant; of a choice it is a word.
        kept = () if schemas.choices(hint) or listed else (_BOOL,)
        plain = node.style is None and schemas.is_textual(hint)
        if plain and (node.tag not in (_NULL, *kept) or _is_word(hint, node.value)):
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        entry = next(iter(get_args(inner)), None) if _is_list(inner) else None
        for each in node.value:
            _keep_text(each, entry, seen, listed=True)
    elif isinstance(node, yaml.MappingNode):
        fields = schemas.fields_of(schemas.dataclass_in(hint))
        values = get_args(inner)[1:2] if get_origin(inner) in (dict, Mapping) else ()
        for key, value in node.value:
            _keep_text(value, fields.get(str(key.value), next(iter(values), None)), seen)


def _is_word(hint: Any, text: str) -> bool:
    """Whether a choice has the very word that would be null."""
    return text in schemas.choices(hint)


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (list, tuple, Sequence)
