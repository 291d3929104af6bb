"""Code versions follow behaviour, not layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from fim_core.pipeline import code

BEFORE = 'def f(x):\n    """Add one."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ('def f(x):\n    """Other words."""\n\n    # why\n    return (x + 1)\n', True),
        ('def f(x):\n    """Add one."""\n    return x + 2\n', False),
    ],
)
def test_only_behaviour_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, same: bool) -> None:
    monkeypatch.setattr(code, "_ROOT", tmp_path)
    versions = []
    for text in (BEFORE, after):
        code.code_version.cache_clear()
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / "m.py").write_text(text)
        versions.append(code.code_version("part"))
    code.code_version.cache_clear()
    assert (versions[0] == versions[1]) is same


def test_a_place_without_code_is_a_mistake() -> None:
    with pytest.raises(FileNotFoundError):
        code.code_version("no_such_place")
