"""Strict YAML 1.2 reader: safe, bounded in size, without duplicate keys or non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 50
LARGEST = 100_000
LARGEST_NUMBER = 2**63

_MERGE = "tag:yaml.org,2002:merge"


class InvalidYaml(ValueError):
    """An unusable document; the message names the line."""


def read_yaml(text: str) -> Any:
    """Parse a YAML document into plain values, lists and mappings.

    Raises:
        InvalidYaml: it is invalid, has a duplicate key or a non-finite number, or is too deep or too large.
    """
    try:
        parser = YAML(typ="safe", pure=True)
        if (root := parser.compose(text)) is None:
            return None
        _require_sane(root, parser.constructor.construct_object)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidYaml(f"{place}{error.problem or error.context}") from error
    except YAMLError as error:
        raise InvalidYaml(str(error)) from error
    except RecursionError as error:
        raise InvalidYaml(f"nested deeper than {DEEPEST} levels.") from error


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
    try:
        value = construct(node)
    except (ValueError, OverflowError) as error:
        raise InvalidYaml(f"line {line}: invalid value: {error}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidYaml(f"line {line}: {value} is not a finite number. Give a number, or leave the option out.")
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise InvalidYaml(f"line {line}: a number has more than 64 bits. Give a smaller one.")
