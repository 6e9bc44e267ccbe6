"""No module of align imports itself through others, not even lazily or for type checking: import-linter ignores such cycles."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import align


def import_graph(root: Path) -> dict[str, set[str]]:
    """Modules below a package's folder, each with those it imports: at the top, in functions and under TYPE_CHECKING."""
    files = {_module_name(root, path): path for path in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None, f"{path}:{node.lineno}: relative import"
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    imported.add(submodule if submodule in files else node.module)
        graph[module] = imported & files.keys() - {module}
    return graph


def _module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_through_others() -> None:
    assert align.__file__ is not None
    graph = import_graph(Path(align.__file__).parent)
    assert len(graph) > 200
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "second",
    ["def f():\n    from package.first import a\n", "if TYPE_CHECKING:\n    import package.first\n"],
)
def test_lazy_and_type_checking_cycles_are_found(tmp_path: Path, second: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text("from package import second\n")
    (package / "second.py").write_text(second)
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(package)).prepare()
