"""The version of the code behind a stage, from the code itself: nobody has to remember to raise a number."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import fim_core

_ROOT = Path(fim_core.__file__).parent


@cache
def code_version(*places: str) -> str:
    """Hash (12 hex digits) of the source under `fim_core/<place>`, each a module's file or a folder.

    Comments, docstrings and layout do not count in Python files, so that only a change in behaviour makes old
    artifacts stale. Other files (SQL, templates) count as they are.
    """
    hasher = hashlib.sha256()
    for place in places:
        path = _ROOT / place
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in {".py", ".sql", ".tmpl"})
        if not files:
            raise FileNotFoundError(f"fim_core/{place} holds no code")
        for file in files:
            hasher.update(f"{file.relative_to(_ROOT)}\0{_meaning(file)}\0".encode())
    return hasher.hexdigest()[:12]


def _meaning(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_block = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_block and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.dump(tree)
