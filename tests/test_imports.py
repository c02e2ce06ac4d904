"""Which module imports which: data walks one way, and every module is found by its name."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = "tvm_directconv"
ROOT = Path(__file__).parent.parent


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the package by the names that their modules have."""
    found = {}
    for folder, name in ((PACKAGE, PACKAGE), ("schedules", f"{PACKAGE}.schedules")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a module imports anywhere, in functions and for types as well."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            begin = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{begin}.{alias.name}"
                yield from (
                    found for found in [inner if inner in known else begin] if found in known
                )


def circle(root: Path) -> list[str]:
    """Return modules of which each is imported by the one before it, empty if there are none."""
    known = modules(root)
    arrows = {name: set(imports(name, path, known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_module_imports_what_imports_it() -> None:
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "from .upper import f",
        "def f():\n    from . import upper",
        "from tvm_directconv import upper",
    ],
)
def test_circles_are_found(tmp_path: Path, line: str) -> None:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "upper.py").write_text("from .lower import g\n")
    (folder / "lower.py").write_text(line)
    assert {f"{PACKAGE}.upper", f"{PACKAGE}.lower"} <= set(circle(tmp_path))


def hidden(name: str) -> bool:
    """Return whether another thing of this name is in the package that a module belongs to."""
    parent, _, leaf = name.rpartition(".")
    module = import_module(name)
    return bool(parent) and getattr(import_module(parent), leaf) is not module


@pytest.mark.parametrize("name", modules(ROOT))
def test_no_module_is_hidden(name: str) -> None:
    try:
        assert not hidden(name)
    except ImportError as error:  # Only of what the optional libraries of rivals are needed for.
        assert ".bench.rivals." in name and error.name and PACKAGE not in error.name, error


def test_hidden_modules_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hiding"
    package.mkdir()
    (package / "__init__.py").write_text("from .shown import shown\n")
    (package / "shown.py").write_text("def shown() -> None: ...\n")
    (package / "other.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert hidden("hiding.shown")
    assert not hidden("hiding.other")
