"""YAML as experiments use it: safe, of a sane size, with every key once and with finite numbers."""

from __future__ import annotations

import math
from typing import Any

import yaml

DEEPEST = 50
LARGEST = 100_000
LARGEST_NUMBER = 2**63

_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader to which a key that is given twice is a mistake; YAML says so, and PyYAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if (first := lines.get(name)) is not None:
                raise yaml.YAMLError(
                    f"line {line}: {key.value} is given again, after line {first}. Remove one of them."
                )
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        line = node.start_mark.line + 1
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.YAMLError(f"line {line}: a value cannot be used: {error}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise yaml.YAMLError(
                f"line {line}: {value} is not a finite number. Give a number, or leave the option out."
            )
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise yaml.YAMLError(f"line {line}: a number has more than 64 bits. Give a smaller one.")
        return value


def _require_sane(root: yaml.Node | None) -> None:
    """Go on if a document is of a size that an experiment may have, with every alias replaced by what it stands for.

    Raises:
        yaml.YAMLError: it is nested too deeply, holds itself, or grows too large.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        line = node.start_mark.line + 1
        if id(node) in open_nodes:
            raise yaml.YAMLError(f"line {line}: an alias stands for something that holds it. Write it out.")
        if depth > DEEPEST:
            raise yaml.YAMLError(f"line {line}: nested deeper than {DEEPEST} levels.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in node.value for child in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
            open_nodes.remove(id(node))
        if sizes[id(node)] > LARGEST:
            raise yaml.YAMLError(f"line {line}: more than {LARGEST:,} values, aliases counted in full.")
        return sizes[id(node)]

    if root is not None:
        size(root, 1)


def read_yaml(text: str) -> Any:
    """The content of a YAML document: plain values, lists and mappings.

    Raises:
        yaml.YAMLError: it is not valid, holds a key twice or a number that is not finite, or is too deep or too large;
            with the line.
    """
    loader = _UniqueKeys(text)
    try:
        root = loader.get_single_node()
        _require_sane(root)
        return None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels.") from error
    finally:
        loader.dispose()
