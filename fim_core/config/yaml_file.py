"""Strict YAML reader: safe, bounded in size, without duplicate keys or non-finite numbers.

Values are those of YAML 1.1, as most tools read them (`yes` and `off` are booleans), with two differences: `1e-5` is a
number, and `y` and `n` are texts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MantissaNoDotYAML1_1Warning, MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 50
LARGEST = 100_000
LARGEST_NUMBER = 2**63

_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"


class InvalidYaml(ValueError):
    """An unusable document; the message names the line."""


def read_yaml(text: str) -> Any:
    """Parse a YAML document into plain values, lists and mappings.

    Raises:
        InvalidYaml: it is invalid, has a duplicate key or a non-finite number, or is too deep or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MantissaNoDotYAML1_1Warning)
            warnings.simplefilter("error", ReusedAnchorWarning)
            return _read(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidYaml(f"{place}{error.problem or error.context}") from error
    except ReusedAnchorWarning as error:
        raise InvalidYaml("an anchor is defined twice. Give each anchor a name of its own.") from error
    except (YAMLError, AssertionError) as error:  # the library asserts that it knows the version of a directive
        raise InvalidYaml(str(error)) from error
    except RecursionError as error:
        raise InvalidYaml(f"nested deeper than {DEEPEST} levels.") from error


def _read(text: str) -> Any:
    parser = YAML(typ="safe", pure=True)
    parser.version = (1, 1)
    if (root := parser.compose(text)) is None:
        return None
    _require_sane(root, parser.constructor.construct_object)
    return parser.constructor.construct_document(root)


def _require_sane(root: Node, construct: Callable[[Node], Any]) -> None:
    """Check the size of a document, with every alias counted in full, and its values.

    Raises:
        InvalidYaml: it is nested too deeply, contains itself, is too large, or has an unusable value.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        line = node.start_mark.line + 1
        if id(node) in open_nodes:
            raise InvalidYaml(f"line {line}: an alias refers to a value that contains it. Write the value out.")
        if depth > DEEPEST:
            raise InvalidYaml(f"line {line}: nested deeper than {DEEPEST} levels.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[Node] = []
            if isinstance(node, MappingNode):
                _require_unique(node)
                children = [child for pair in node.value for child in pair if child.tag != _MERGE]
            elif isinstance(node, SequenceNode):
                children = node.value
            else:
                _require_usable(node, construct)
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
            open_nodes.remove(id(node))
        if sizes[id(node)] > LARGEST:
            raise InvalidYaml(f"line {line}: more than {LARGEST:,} values, aliases counted in full.")
        return sizes[id(node)]

    size(root, 1)


def _require_unique(mapping: MappingNode) -> None:
    # ruamel.yaml refuses duplicate keys too, but reports the line of the mapping instead of that of the first key.
    lines: dict[tuple[Any, Any], int] = {}
    for key, _ in mapping.value:
        if isinstance(key, ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise InvalidYaml(
                    f"line {line}: duplicate key {key.value}, first on line {lines[name]}. Remove one of them."
                )
            lines[name] = line


def _require_usable(node: Node, construct: Callable[[Node], Any]) -> None:
    line = node.start_mark.line + 1
    if isinstance(node, ScalarNode) and node.value in ("y", "Y", "n", "N") and node.style is None:
        node.tag = _TEXT
    try:
        value = construct(node)
    except (ValueError, OverflowError) as error:
        raise InvalidYaml(f"line {line}: invalid value: {error}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidYaml(f"line {line}: {value} is not a finite number. Give a number, or leave the option out.")
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise InvalidYaml(f"line {line}: a number has more than 64 bits. Give a smaller one.")
