"""Mutants of a module, which are copies of its source with one change, and the tests of a module."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.And, ast.Or)),
)
SWAPS = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
SWAPS |= {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
CODE = ("ham", "pruning")
_NOT_CODE = ("annotation", "returns", "decorator_list", "type_params")  # they compute nothing
_SYMMETRIC = ("min", "max", "minimum", "maximum")  # functions whose arguments have no order


@dataclass(frozen=True)
class Mutant:
    """One change of `file` at `line`: the changed lines with single spaces, and the changed source."""

    file: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """The same for the same change of the same source."""
        return hashlib.sha256(f"{self.file}\0{self.source}".encode()).hexdigest()[:16]


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines; those that read the same occur once."""
    lines = source.encode().splitlines(keepends=True)
    made: dict[str, Mutant] = {}
    for node, text in _changes(ast.parse(source)):
        first, last = node.lineno - 1, node.end_lineno - 1
        after = lines[first][: node.col_offset] + text.encode() + lines[last][node.end_col_offset :]
        changed = b"".join([*lines[:first], after, *lines[last + 1 :]]).decode()
        flat = [" ".join(part.decode().split()) for part in (b"".join(lines[first : last + 1]), after)]
        made.setdefault(changed, Mutant(file, node.lineno, *flat, changed))
    return sorted(made.values(), key=lambda mutant: (mutant.line, mutant.after))


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(what is replaced, its new text) of the node and everything below it, except in texts of messages.

    zip(strict=True) stays, which only guards what the code around it ensures, and so do aliases of types.
    """
    if isinstance(node, ast.Raise):
        yield node, "pass"
    match node:
        case ast.JoinedStr() | ast.Raise() | ast.keyword(arg="strict", value=ast.Constant(value=True)):
            return
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return
    if isinstance(node, ast.expr):
        yield from ((node, f"({ast.unparse(other)})") for other in _expressions(node))
    elif text := _statement(node):
        yield node, text
    if isinstance(node, ast.If | ast.IfExp):
        yield node.test, f"(not ({ast.unparse(node.test)}))"
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in _NOT_CODE:
                yield from _changes(child)


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    """Other expressions in place of one."""
    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                yield _with(node, ops=[*node.ops[:place], SWAPS[type(op)](), *node.ops[place + 1 :]])
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPS:
            yield _with(node, op=SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield from (ast.Constant(node.value + more) for more in (1, -1))
        case ast.Call(args=[one, other, *rest]) if ast.dump(one) != ast.dump(other):
            starred = isinstance(one, ast.Starred) or isinstance(other, ast.Starred)
            if not starred and getattr(node.func, "id", getattr(node.func, "attr", "")) not in _SYMMETRIC:
                yield _with(node, args=[other, one, *rest])


def _statement(node: ast.AST) -> str:
    """Another statement in place of one, or nothing. A name that is never set fails everywhere: it stays."""
    match node:
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            return "return None"
        case ast.Expr() if not isinstance(node.value, ast.Constant):  # no docstring
            return "pass"
        case ast.AugAssign() | ast.Delete() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return "pass"
    return {ast.Break: "continue", ast.Continue: "break"}.get(type(node), "")


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def related_tests(root: Path, module: str) -> list[str]:
    """Test files of a module: named after it, then those that import it, of the mirrored folder first.

    Without any, those that import a module that imports it, and so on; at last all of the mirrored folder.
    """
    every = sorted(str(file.relative_to(root)) for file in (root / "tests").rglob("test_*.py"))
    stem = f"test_{Path(module).stem.removeprefix('_')}"
    found = [test for test in every if Path(test).stem == stem or Path(test).stem.startswith(f"{stem}_")]
    mirrored = [test for test in every if Path(test).parent == Path("tests", module).parent]
    level, seen, importers = {module}, set(), []
    while level and not importers:
        importers = [test for test in every if level & imported(root, test) and test not in found]
        seen |= level
        code = [file for top in CODE for file in (root / top).rglob("*.py")]
        above = {name for file in code if level & imported(root, name := str(file.relative_to(root)))}
        level = set() if found else above - seen
    return found + sorted(importers, key=lambda test: test not in mirrored) or mirrored


@cache
def imported(root: Path, file: str) -> frozenset[str]:
    """The files that a file imports, itself or by a helper in tests/."""
    direct = {found for name in _names(root / file, file) if (found := _file_of(root, name))} - {file}
    helpers = [path for path in direct if path.startswith("tests/")]
    return frozenset(direct.union(*(imported(root, helper) for helper in helpers)))


def _file_of(root: Path, name: str) -> str | None:
    """The file of a dotted name: of a module, or of the module from which a package takes the name."""
    path, (package, _, attribute) = name.replace(".", "/"), name.rpartition(".")
    if (root / f"{path}.py").exists():
        return f"{path}.py"
    if not package:
        helper = next((root / "tests").rglob(f"{name}.py"), None)
        return str(helper.relative_to(root)) if helper else None
    file = f"{package.replace('.', '/')}/__init__.py"
    if not (root / file).exists():
        return _file_of(root, package)
    taken = [n for n in _names(root / file, file) if n.rpartition(".")[2] == attribute and n != name]
    return _file_of(root, taken[0]) if taken else file


@cache
def _names(path: Path, file: str) -> list[str]:
    """Dotted names that a file imports: of modules, and of what it takes from them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*Path(file).parts[: -node.level], node.module] if node.level else [node.module]
            names += [".".join(filter(None, [*start, alias.name])) for alias in node.names]
    return names
