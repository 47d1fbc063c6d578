"""A worker without any tracing: `python -m benchmarks.untraced run` is `synapse-worker run` with those calls cut out.

They are taken out of the modules' syntax trees as these are imported: a `with` loses the span and keeps its body, a
statement that only tells a span something goes, and what asks for an answer gets the one of a process that traces
nothing. What is left is the product without them, not with cheaper ones in their place.
"""

from __future__ import annotations

import ast
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

_PACKAGE = "synapse_worker."
_SPANS = ("begin", "span", "call", "step", "sql", "redis")
_NOTES = ("past", "note", "failed", "ended")
_ANSWERS = {"is_on": False, "provider": None, "traceparent": ""}
_LEAST = 10
"""Calls that a worker's start has to meet; fewer would say that they are not recognised any more."""


class Cut(ast.NodeTransformer):
    """Takes the calls out of a module; `count` of them so far."""

    def __init__(self) -> None:
        self.count = 0

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        """Drop spans from a `with`."""
        self.generic_visit(node)
        kept = [item for item in node.items if not self._is_call(item.context_expr, _SPANS)]
        if not kept:
            return node.body
        node.items = kept
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Drop what only tells a span something."""
        return ast.copy_location(ast.Pass(), node) if self._is_call(node.value, _NOTES) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Answer what is asked."""
        if self._is_call(node, tuple(_ANSWERS)):
            assert isinstance(node.func, ast.Attribute)
            return ast.copy_location(ast.Constant(_ANSWERS[node.func.attr]), node)
        return self.generic_visit(node)

    def _is_call(self, node: ast.expr, names: tuple[str, ...]) -> bool:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="tracing"), attr=name)) if name in names:
                self.count += 1
                return True
        return False


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, cut: Cut) -> None:
        super().__init__(name, path)
        self._cut = cut

    def get_code(self, fullname: str) -> CodeType:
        """Compile the module without the calls; never from or into a cache."""
        tree = ast.parse(self.get_data(self.path))
        return compile(ast.fix_missing_locations(self._cut.visit(tree)), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.cut = Cut()

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find modules of the worker as ever, and load them with `_Loader`."""
        if not fullname.startswith(_PACKAGE) or fullname == f"{_PACKAGE}tracing":
            return None
        spec = PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path, self.cut)
        return spec


def _main() -> None:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    from synapse_worker import cli, lifecycle

    assert lifecycle.__spec__ is not None
    assert isinstance(lifecycle.__spec__.loader, _Loader), "the worker was imported before"
    assert finder.cut.count >= _LEAST, f"{finder.cut.count} calls found"
    cli.main()


if __name__ == "__main__":
    _main()
