"""Code versions, derived from the source code, so that no version number has to be maintained by hand.

The version of a stage covers the modules that its build function imports, directly or indirectly, except those in
`CANNOT_CHANGE_CONTENT`. An artifact is made again if code that determines its bytes changes, but not if, for example, a
progress bar does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import fim_core

_ROOT = Path(fim_core.__file__).parent

CANNOT_CHANGE_CONTENT = {
    "fim_core.config": "the values of options that determine the content are part of the version",
    "fim_core.errors": "messages",
    "fim_core.atomic": "how files are written, not what is in them",
    "fim_core.integrity": "detection of damage",
    "fim_core.provenance": "information for people in a manifest",
    "fim_core.prompts.feedback_metrics": "figures for people in a manifest",
    "fim_core.store": "where artifacts are stored",
    "fim_core.hub": "whether a model exists",
    "fim_core.object_storage": "where files are copied from and to; their digests are part of the version",
    "fim_core.process_group": "how processes end",
    "fim_core.publishing": "where champions are copied to",
    "fim_core.cli": "the command line",
    "fim_core.pipeline.stage": "when a stage runs",
    "fim_core.pipeline.code_version": "when a stage runs",
    "fim_core.pipeline.accounting": "a summary for people",
    "fim_core.pipeline.model_card": "the model card, which does not affect the model",
    "fim_core.launchers": "where ranks run, and how they are followed",
    "fim_core.training.events": "logging",
    "fim_core.training.trackers": "logging",
    "fim_core.training.log_tail": "logging",
    "fim_core.training.utilization": "logging",
    "fim_core.training.failures": "how a failed run ends",
    "fim_core.quick_imports": "how fast a rank starts",
    "fim_core.training.lease": "how a run without a follower ends",
    "fim_core.inference.row_progress": "progress",
    "fim_core.evaluation.page": "the HTML page, which is rewritten without evaluating again",
    "fim_core.pipeline.report_latency": "latency, which is measured only if the version of the report includes that code",
    "fim_core.pipeline.report_background": "what that page shows of other artifacts",
}
"""Modules and packages that are excluded from all versions, with the reason. Their imports count only through others."""

CAN_CHANGE_CONTENT = {
    "fim_core.config.split_expression": "which rows of a source are read",
    "fim_core.config.deepspeed": "the ZeRO stage and the clipping where none is given",
}
"""Modules of the excluded packages that are part of versions all the same, with what they decide."""

_DATA_SUFFIXES = {".sql", ".tmpl"}


@cache
def code_version(*modules: str) -> str:
    """Hash (12 hex digits) of the source of modules of fim_core and of everything that they import from it.

    Comments, docstrings and formatting of Python files are ignored, so that only changes in behaviour make artifacts
    stale. SQL files and templates are hashed unchanged, with the modules of the package that contains them.
    """
    hasher = hashlib.sha256()
    for file in source_files(*modules):
        hasher.update(f"{file.relative_to(_ROOT)}\0{_meaning(file)}\0".encode())
    return hasher.hexdigest()[:12]


def source_files(*modules: str) -> list[Path]:
    """List the files that `code_version` hashes, sorted.

    Raises:
        ModuleNotFoundError: a module does not exist.
    """
    found: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += [name for name in _imports_of(module) if not _cannot_change_content(name)]
    code = {_file_of(module) for module in found}
    return sorted(code | {file for folder in {file.parent for file in code} for file in _data_files(folder)})


def _cannot_change_content(module: str) -> bool:
    if module in CAN_CHANGE_CONTENT:
        return False
    parents = module.split(".")
    return any(".".join(parents[:length]) in CANNOT_CHANGE_CONTENT for length in range(1, len(parents) + 1))


def _imports_of(module: str) -> set[str]:
    """Modules of fim_core that a module imports anywhere in its code, except under TYPE_CHECKING."""
    names = _import_statements(_file_of(module).read_text(encoding="utf-8"))
    found = {_origin(origin, name) if name else origin for origin, name in names}
    return {name for name in found if name.startswith("fim_core.")}


@cache
def _import_statements(source: str) -> frozenset[tuple[str, str | None]]:
    """What a source imports: (module, None), or (module, name) for `from module import name`."""
    found: set[tuple[str, str | None]] = set()
    for node in _running_code(_parsed(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    return frozenset(found)


def _origin(module: str, name: str) -> str:
    """The module that `from module import name` refers to: a submodule, or the one that a package re-exports it from."""
    if _exists(f"{module}.{name}"):
        return f"{module}.{name}"
    if module.split(".")[0] == "fim_core" and (file := _file_of(module)).name == "__init__.py":
        for node in _parsed(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
                return _origin(node.module, name)
    return module


def _running_code(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from _running_code(node)


def _path_of(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")[1:])


def _exists(module: str) -> bool:
    path = _path_of(module)
    return module.startswith("fim_core.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def _file_of(module: str) -> Path:
    if not _exists(module):
        raise ModuleNotFoundError(f"fim_core has no module {module}")
    path = _path_of(module)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _data_files(folder: Path) -> Iterator[Path]:
    """SQL files and templates in a package's folder and in subfolders that are not packages."""
    for path in folder.iterdir():
        if path.suffix in _DATA_SUFFIXES:
            yield path
        elif path.is_dir() and not (path / "__init__.py").exists():
            yield from _data_files(path)


# Cached by content: most modules belong to several stages.
@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _meaning(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return _digest_of_code(text) if file.suffix == ".py" else text


@cache
def _digest_of_code(source: str) -> str:
    """SHA-256 of the syntax tree without docstrings."""
    tree = _parsed(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_block = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_block and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
