"""YAML as experiments use it: safe, and with every key once."""

from __future__ import annotations

from typing import Any

import yaml

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


def read_yaml(text: str) -> Any:
    """The content of a YAML document: plain values, lists and mappings.

    Raises:
        yaml.YAMLError: it is not valid, or a mapping holds a key twice; with the line.
    """
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
