"""Arithmetic expressions of a recipe over named arrays.

The text is parsed by Python's `ast` and checked against a list of allowed nodes; it is never
compiled or run as code.
"""

import ast
import math
import operator
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

from pipeline.core.errors import closest

MAX_LENGTH = 1000
"""Largest number of characters of an expression."""
MAX_DEPTH = 100
"""Largest depth of the tree; a sum of n terms has depth n."""

Tree: TypeAlias = "float | str | list[Tree]"
"""A number, a name, or an operator or function with its arguments: ["+", "a", ["log", "b"]]."""

Functions = Mapping[str, Collection[int]]
"""Allowed numbers of arguments of each function: {"log": [1], "max": range(2, 9)}."""


class Expression:
    """Numbers, names, + - * /, a minus sign, parentheses and calls of functions.

    ValueError, as validators of a recipe raise it, for any other text.
    """

    def __init__(self, text: str, functions: Functions | None = None) -> None:
        self.text = text.strip()
        self._functions = functions or {}
        if len(self.text) > MAX_LENGTH:
            raise ValueError(
                f"an expression has at most {MAX_LENGTH} characters, here are {len(self.text)}"
            )
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "too deep"
            raise ValueError(f"`{self.text}` is no expression: {reason}") from None
        names: list[str] = []
        self._check(self._tree, names, MAX_DEPTH)
        self.names = tuple(dict.fromkeys(names))
        """Names in the expression, each once."""

    def check_names(self, names: Iterable[str]) -> None:
        """ValueError for a name in the expression that is none of `names`."""
        names = list(names)
        for name in self.names:
            if name not in names:
                hint = closest(name, names)
                raise ValueError(f"`{self.text}` has no value for the name `{name}`; {hint}")

    def evaluate(
        self, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> Any:
        """Return the value of the expression for `values` of NumPy, PyTorch or pandas.

        Constants are floats, so a function of constants gets floats. Division by zero is infinite,
        or NaN for 0 / 0, for arrays and constants alike.
        """
        return _evaluate(self._tree, values, functions or {})

    @property
    def tree(self) -> Tree:
        """The expression as JSON values; a negated constant is a number."""
        return _tree(self._tree)

    def _check(self, node: ast.expr, names: list[str], depth: int) -> None:
        """Append the names of a node; ValueError if it is not allowed."""
        if depth == 0:
            raise ValueError(f"`{self.text}` is nested too deep: at most {MAX_DEPTH} levels")
        parts: list[ast.expr] = []
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if not abs(value) <= sys.float_info.max:
                    raise ValueError(f"`{self._piece(node)}` is too large for a number")
            case ast.Name(id=name):
                names.append(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                parts = [operand]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                parts = [left, right]
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
                self._check_call(node, name, len(parts))
            case _:
                functions = f" and the functions {', '.join(self._functions)}"
                raise ValueError(
                    f"`{self._piece(node)}` is not allowed in an expression, which has numbers, "
                    f"names, + - * /, parentheses{functions if self._functions else ''}"
                )
        for part in parts:
            self._check(part, names, depth - 1)

    def _check_call(self, node: ast.Call, name: str, num_arguments: int) -> None:
        if name not in self._functions:
            hint = closest(name, self._functions) if self._functions else "there are none"
            raise ValueError(f"`{self._piece(node)}`: there is no function `{name}`; {hint}")
        allowed = sorted(self._functions[name])
        if num_arguments not in allowed:
            counts = " or ".join(map(str, allowed))
            if len(allowed) > 2 and allowed == [*range(allowed[0], allowed[-1] + 1)]:
                counts = f"{allowed[0]} to {allowed[-1]}"
            raise ValueError(
                f"`{self._piece(node)}`: `{name}` takes {counts} "
                f"argument{'' if allowed == [1] else 's'}, here are {num_arguments}"
            )

    def _piece(self, node: ast.expr) -> str:
        """Return the source text of a node."""
        return ast.get_source_segment(self.text, node) or self.text


def _evaluate(
    node: ast.expr, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values, functions)
        case ast.BinOp(left=left, op=op, right=right):
            sides = [_evaluate(side, values, functions) for side in (left, right)]
            return _OPERATORS[type(op)](*sides)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return functions[name](*(_evaluate(a, values, functions) for a in arguments))
    raise AssertionError(ast.dump(node))  # refused by the constructor


def _tree(node: ast.expr) -> Tree:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(operand=operand):
            inner = _tree(operand)
            return -inner if isinstance(inner, float) else ["-", 0.0, inner]
        case ast.BinOp(left=left, op=op, right=right):
            return [_SIGNS[type(op)], _tree(left), _tree(right)]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return [name, *map(_tree, arguments)]
    raise AssertionError(ast.dump(node))  # refused by the constructor


def _divide(left: Any, right: Any) -> Any:
    try:
        return left / right
    except ZeroDivisionError:  # of Python's numbers; arrays divide as IEEE 754 says
        if left == 0 or math.isnan(left):
            return math.nan
        return math.copysign(math.inf, left) * math.copysign(1.0, right)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
}
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
