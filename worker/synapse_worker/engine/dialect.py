"""What the user's Python becomes before it goes into the sandbox.

The sandbox's interpreter speaks most of Python, not all of it. Here, on the syntax tree and without running anything:
dotted access to state in expressions, the few idioms that the interpreter lacks and that have an equal spelling it
has, which state keys the code reads (so that only those travel), and which names and imports it relies on (so that
`sandbox` can ask the interpreter about them). Judging syntax is left to the interpreter, except for expressions,
which must be read here to be rewritten.
"""

from __future__ import annotations

import ast
import bisect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from synapse_worker.engine.errors import CodeRefused

MAX_EXPRESSION_BYTES = 4 * 1024
MAX_TRANSFORM_BYTES = 64 * 1024

EXPRESSION_HELPERS = """\
def _get(value, name):
    if value is None: return None
    if isinstance(value, dict): return value.get(name)
    return getattr(value, name)
def _item(value, key):
    if value is None: return None
    if isinstance(value, dict): return value.get(key)
    return value[key]
"""
"""Defined in front of every expression: a missing key is None, in `state.a.b` and in `state['a']['b']`."""

TRANSFORM_HELPERS = """\
def _re_sub(pattern, repl, string, count=0, flags=0):
    import re
    if isinstance(repl, str): return re.sub(pattern, repl, string, count=count, flags=flags)
    found = re.finditer(pattern, string, flags) if isinstance(pattern, str) else pattern.finditer(string)
    parts = []
    end = 0
    for number, match in enumerate(found):
        if count and number >= count: break
        parts.append(string[end:match.start()])
        parts.append(repl(match))
        end = match.end()
    parts.append(string[end:])
    return ''.join(parts)
"""
"""Defined in front of every transform: `re.sub` with a function as replacement."""

_STR_METHODS = frozenset(name for name in dir(str) if not name.startswith("_")) - {"maketrans"}
_READS_EVERYTHING = frozenset({"eval", "exec", "locals", "globals", "vars"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """Code ready for the sandbox.

    Attributes:
        source: what is fed; the user's own text wherever nothing had to be rewritten.
        state_keys: the top-level keys of state that it can read; None = any of them.
        lines: for rewritten code, (line in source, line in the user's text), ascending.
    """

    source: str
    state_keys: frozenset[str] | None
    lines: tuple[tuple[int, int], ...] = ()

    def user_line(self, line: int) -> int:
        """The line of the user's text for a line of `source`."""
        if not self.lines:
            return line
        return self.lines[max(0, bisect.bisect_right(self.lines, (line, 1 << 30)) - 1)][1]


class Need(NamedTuple):
    """Something that code relies on: `probe` is a statement that fails where it is lacking."""

    line: int
    probe: str


@lru_cache(maxsize=1024)
def prepare_expression(text: str) -> Prepared:
    """Rewrite a condition or switch expression.

    Raises:
        CodeRefused: it is too long, or no Python expression.
    """
    tree = _parse_expression(text)
    try:
        keys = _state_keys(tree)
        rewritten = ast.unparse(ast.fix_missing_locations(_Expression(_bound_names(tree)).visit(tree)))
    except RecursionError:
        raise CodeRefused("The expression nests too deeply.") from None
    except ValueError as error:  # quotes inside an f-string that our Python cannot write again
        raise CodeRefused(f"The expression cannot be read: {error}.") from None
    return Prepared(rewritten, keys)


@lru_cache(maxsize=256)
def prepare_transform(code: str) -> Prepared:
    """Rewrite a transform where the interpreter needs it; most come back as they are.

    Raises:
        CodeRefused: it is too long or too deeply nested, or returns outside a function.
    """
    tree = _parse_transform(code)
    if tree is None:
        return Prepared(code, None)
    try:
        line = _stray_return(tree)
        if line is not None:
            raise CodeRefused(f"The transform has a return outside a function; it sets `result` (line {line}).")
        keys = _state_keys(tree)
        rewriter = _Statements(_bound_names(tree))
        fixed = ast.fix_missing_locations(rewriter.visit(tree))
        if not rewriter.changed:
            return Prepared(code, keys)
        source = ast.unparse(fixed)
        return Prepared(source, keys, _line_table(fixed, ast.parse(source)))
    except RecursionError:
        raise CodeRefused("The transform nests too deeply.") from None
    except ValueError:  # quotes inside an f-string that our Python cannot write again: let the interpreter judge
        return Prepared(code, None)


def expression_needs(text: str) -> list[Need]:
    """Return the names that an expression uses and does not define itself; errors as `prepare_expression`."""
    tree = _parse_expression(text)
    return _free_names(tree, {"state"})


def transform_needs(code: str) -> list[Need]:
    """Return the imports of a transform and the names that nothing in it defines; errors as `prepare_transform`.

    Imports inside `try` are left out: such code says itself what happens without the module.
    """
    return _script_needs(code, {"state", "result", "json"})


def tool_needs(code: str) -> list[Need]:
    """Return the same of a custom tool's script, which is given `_args` and prints its result."""
    return _script_needs(code, {"_args", "json"})


def _script_needs(code: str, given: set[str]) -> list[Need]:
    tree = _parse_transform(code)
    if tree is None:
        return []
    needs = [Need(node.lineno, ast.unparse(node)) for node in _imports(tree)]
    if not any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        needs += _free_names(tree, given)
    return needs


def _parse_expression(text: str) -> ast.Expression:
    if len(text.encode("utf-8", "replace")) > MAX_EXPRESSION_BYTES:
        raise CodeRefused(f"The expression is longer than {MAX_EXPRESSION_BYTES} bytes.")
    try:
        with warnings.catch_warnings():
            # "invalid escape sequence" and the like are not for our log.
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise CodeRefused(f"The expression is no Python expression: {error.msg} (line {error.lineno or 1}).") from None
    except ValueError as error:
        raise CodeRefused(f"The expression is no Python expression: {error}.") from None
    except (RecursionError, MemoryError):
        raise CodeRefused("The expression nests too deeply.") from None


def _parse_transform(code: str) -> ast.Module | None:
    """Parse; None when only the interpreter can judge it, whose Python may be newer than ours."""
    if len(code.encode("utf-8", "replace")) > MAX_TRANSFORM_BYTES:
        raise CodeRefused(f"The transform is longer than {MAX_TRANSFORM_BYTES} bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    except (RecursionError, MemoryError):
        raise CodeRefused("The transform nests too deeply.") from None


class _Rewriter(ast.NodeTransformer):
    """The idioms that the interpreter lacks, each replaced by an equal one that it has."""

    def __init__(self, bound: frozenset[str]) -> None:
        self._bound = bound
        self.changed = False

    def _builtin(self, node: ast.expr, name: str) -> bool:
        return isinstance(node, ast.Name) and node.id == name and name not in self._bound

    def _replace(self, new: ast.expr, old: ast.expr) -> ast.expr:
        self.changed = True
        return ast.copy_location(new, old)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        # The interpreter makes a list of a generator expression, which next() does not take.
        self.generic_visit(node)
        return self._replace(_call("iter", node), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        # Every function but next() takes the list as it is: leave the text alone there.
        lazy = self._builtin(node.func, "next")
        node.func = self.visit(node.func)
        node.args = [
            self.generic_visit(argument)  # type: ignore[misc]  # visits the children, returns the same node
            if isinstance(argument, ast.GeneratorExp) and not lazy
            else self.visit(argument)
            for argument in node.args
        ]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "utcnow" and not node.args:
            # The sandbox's zone is UTC.
            node.func.attr = "now"
            self.changed = True
        return node

    def _str_method(self, node: ast.Attribute) -> ast.expr | None:
        """`str.upper` as a value, which the interpreter does not have: a function that calls the method."""
        if self._builtin(node.value, "str") and node.attr in _STR_METHODS:
            function = ast.parse(f"lambda _text, *_more: _text.{node.attr}(*_more)", mode="eval").body
            return self._replace(function, node)
        return None


class _Expression(_Rewriter):
    """Dotted and subscript access where a missing key is None, in expressions."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        # A method keeps its dot: `state.items()` calls the method, `state.items` reads the key.
        if isinstance(node.func, ast.Attribute) and self._str_method(node.func) is None:
            method = node.func
            node.func = ast.Name("_", ast.Load())
            super().visit_Call(node)
            method.value = self.visit(method.value)
            node.func = method
            return node
        return super().visit_Call(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        function = self._str_method(node)
        if function is not None:
            return function
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._replace(_call("_get", node.value, ast.Constant(node.attr)), node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.slice, ast.Slice) or not isinstance(node.ctx, ast.Load):
            return node
        return self._replace(_call("_item", node.value, node.slice), node)


class _Statements(_Rewriter):
    """Statements and calls that only transforms use."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._str_method(node) or self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "sub" and _is_name(called.value, "re"):
            replacement = node.args[1] if len(node.args) > 1 else None
            if isinstance(replacement, ast.Lambda | ast.Name | ast.Attribute):
                node.func = self._replace(ast.Name("_re_sub", ast.Load()), called)
        return super().visit_Call(node)

    def visit_Delete(self, node: ast.Delete) -> ast.AST | list[ast.stmt]:
        statements: list[ast.stmt] = []
        for target in node.targets:
            new: ast.stmt
            if isinstance(target, ast.Name):
                new = ast.Expr(ast.Name(target.id, ast.Load()))
            elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice):
                if target.slice.step is not None:
                    return node
                target.ctx = ast.Store()
                new = ast.Assign([target], ast.List([], ast.Load()))
            elif isinstance(target, ast.Subscript):
                pop = ast.Attribute(target.value, "pop", ast.Load())
                new = ast.Expr(ast.Call(pop, [target.slice], []))
            else:
                return node
            statements.append(self.generic_visit(ast.copy_location(new, node)))  # type: ignore[arg-type]
        self.changed = True
        return statements


class _KeyReader(ast.NodeVisitor):
    """Collects the state keys that code reads by a literal name; anything else reads all of them."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.whole = False

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == "state" or node.id in _READS_EVERYTHING:
            self.whole = True

    def visit_arg(self, node: ast.arg) -> None:
        if node.arg == "state":
            self.whole = True
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _is_name(node.value, "state"):
            self.keys.add(node.attr)
        else:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_name(node.value, "state") and (key := _literal(node.slice)) is not None:
            self.keys.add(key)
        else:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and _is_name(called.value, "state"):
            key = _literal(node.args[0]) if node.args and called.attr == "get" else None
            if key is None:
                self.whole = True
            else:
                self.keys.add(key)
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                self.visit(argument)
        else:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        key = _literal(node.left)
        contained = len(node.ops) == 1 and isinstance(node.ops[0], ast.In | ast.NotIn)
        if contained and key is not None and _is_name(node.comparators[0], "state"):
            self.keys.add(key)
        else:
            self.generic_visit(node)


def _state_keys(tree: ast.AST) -> frozenset[str] | None:
    reader = _KeyReader()
    reader.visit(tree)
    return None if reader.whole else frozenset(reader.keys)


def _bound_names(tree: ast.AST) -> frozenset[str]:
    return frozenset(_bindings(tree))


def _bindings(tree: ast.AST) -> Iterator[str]:
    """Every name that the code gives a meaning to, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest


def _free_names(tree: ast.AST, given: set[str]) -> list[Need]:
    known = given | _bound_names(tree)
    free: dict[str, int] = {}
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name):
            if node.id in ("exec", "eval"):
                return []  # what such code defines is known only when it runs
            if node.id not in known:
                free[node.id] = min(node.lineno, free.get(node.id, node.lineno))
        # The interpreter does not look at annotations.
        skipped = {"annotation", "returns"}
        for field, value in ast.iter_fields(node):
            if field not in skipped:
                children = value if isinstance(value, list) else [value]
                pending.extend(child for child in children if isinstance(child, ast.AST))
    return sorted(Need(line, name) for name, line in free.items())


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.Try):
            pending.extend(ast.iter_child_nodes(node))


def _stray_return(tree: ast.AST) -> int | None:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return):
            return node.lineno
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return None


def _line_table(user: ast.AST, source: ast.AST) -> tuple[tuple[int, int], ...]:
    """Pair the statements of both trees: they are the same, the lines are not."""
    pairs = list(zip(_statement_lines(user), _statement_lines(source), strict=True))
    return tuple(sorted((new, old) for old, new in pairs))


def _statement_lines(tree: ast.AST) -> Sequence[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _literal(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
