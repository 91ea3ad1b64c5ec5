"""Expressions over named arrays: values as Python computes them, and what is refused."""

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.expressions import MAX_DEPTH, MAX_LENGTH, Expression

ONE_ARGUMENT = {"log": [1], "exp": [1]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2.0),
        ("a + 0.5 * b", 4.0),
        ("a - b - 1", -3.0),
        ("a / b / 2", 0.25),
        ("-(a + b) * 2", -12.0),
        ("--a", 2.0),
        ("  a\n", 2.0),
        ("max(a, b, 7) + exp(0)", 8.0),
    ],
)
def test_value_is_that_of_arithmetic(text: str, value: float) -> None:
    expression = Expression(text, {"max": range(2, 9), "exp": [1]})
    numbers = {"a": 2.0, "b": 4.0}
    assert expression.evaluate(numbers, {"max": max, "exp": math.exp}) == value


@pytest.mark.parametrize("make", [np.array, torch.tensor, pd.Series], ids=["np", "torch", "pd"])
def test_arrays_of_numpy_torch_and_pandas_are_taken(make: Any) -> None:
    expression = Expression("1 - double(a) / b", {"double": [1]})
    values = {"a": make([1.0, 3.0, 0.0, 1.0]), "b": make([4.0, 2.0, 0.0, 0.0])}
    with np.errstate(all="ignore"):
        result = expression.evaluate(values, {"double": lambda x: 2 * x})
    assert type(result) is type(values["a"])
    np.testing.assert_equal(np.asarray(result), [0.5, -2.0, np.nan, -np.inf])


def test_gradient_passes_through_an_expression_of_tensors() -> None:
    a = torch.tensor([3.0], requires_grad=True)
    Expression("a * a + 2").evaluate({"a": a}).sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [6.0]


@given(left=st.floats(), right=st.floats())
def test_numbers_divide_as_those_of_numpy(left: float, right: float) -> None:
    with np.errstate(all="ignore"):
        expected = np.float64(left) / np.float64(right)
    np.testing.assert_equal(Expression("a / b").evaluate({"a": left, "b": right}), expected)


def test_names_are_listed_once_in_their_order() -> None:
    assert Expression("log(b) + a * b", ONE_ARGUMENT).names == ("b", "a")


def test_unknown_name_lists_the_names() -> None:
    expression = Expression("next_item + 2 * purchas")
    expression.check_names(["next_item", "purchas"])
    with pytest.raises(ValueError, match=r"name `purchas`; did you mean `purchase`"):
        expression.check_names(["next_item", "purchase"])
    with pytest.raises(ValueError, match=r"name `next_item`; known here: x, y\."):
        expression.check_names(["x", "y"])


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("a + b ** 2", "b ** 2"),
        ("a % 2", "a % 2"),
        ("a // 2", "a // 2"),
        ("+a", "+a"),
        ("not a", "not a"),
        ("1 + (a > b)", "a > b"),
        ("a and b", "a and b"),
        ("a if b else 1", "a if b else 1"),
        ("a.real * 2", "a.real"),
        ("2 * a[0]", "a[0]"),
        ("1 + 'text'", "'text'"),
        ("True + 1", "True"),
        ("2j", "2j"),
        ("(lambda: 1)()", "(lambda: 1)()"),
        ("log(x=a)", "log(x=a)"),
        ("log(*a)", "*a"),
        ("a.log(2)", "a.log(2)"),
        ("[a, b]", "[a, b]"),
        ("(n := 1) + a", "n := 1"),
        ("f'{a}'", "f'{a}'"),
        ("ä + b @ c", "b @ c"),
    ],
)
def test_refused_syntax_is_named(text: str, piece: str) -> None:
    with pytest.raises(ValueError) as error:
        Expression(text, ONE_ARGUMENT)
    assert str(error.value).startswith(f"`{piece}` is not allowed in an expression")
    assert str(error.value).endswith("and the functions log, exp")


def test_text_that_is_no_expression_says_where_python_stops() -> None:
    with pytest.raises(ValueError, match=r"`a \+` is no expression: invalid syntax"):
        Expression("a +")
    for text in ("", "a = 1", "a; b", "a\n+ b", "a\0b", "import os"):
        with pytest.raises(ValueError, match="is no expression"):
            Expression(text)


def test_functions_are_those_of_the_table_with_their_arguments() -> None:
    with pytest.raises(ValueError, match=r"`logg\(a\)`: there is no function `logg`; did you mea"):
        Expression("1 + logg(a)", ONE_ARGUMENT)
    with pytest.raises(ValueError, match=r"`__import__\(a\)`: .* `__import__`; there are none"):
        Expression("__import__(a)")
    with pytest.raises(ValueError, match=r"`log` takes 1 argument, here are 2"):
        Expression("log(a, b)", ONE_ARGUMENT)
    with pytest.raises(ValueError, match=r"`max` takes 2 or 3 arguments, here are 1"):
        Expression("max(a)", {"max": range(2, 4)})


def test_length_depth_and_size_of_numbers_are_bounded() -> None:
    assert Expression("+".join("a" * MAX_DEPTH)).evaluate({"a": 1.0}) == MAX_DEPTH
    for text in ("+".join("a" * (MAX_DEPTH + 1)), "-" * MAX_DEPTH + "a"):
        with pytest.raises(ValueError, match="nested too deep: at most 100 levels"):
            Expression(text)
    with pytest.raises(ValueError, match="at most 1000 characters, here are 1001"):
        Expression("a" * (MAX_LENGTH + 1))
    for number in ("1e400", "9" * 400):
        with pytest.raises(ValueError, match=f"`{number}` is too large for a number"):
            Expression(f"a + {number}")


@given(st.text("ab0189.()+-*/,=' \n\0[]{}:@%", max_size=40))
def test_any_text_has_a_value_or_one_error(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the parser's, of texts such as 1if
        try:
            expression = Expression(text, {"a": [1]})
        except ValueError:
            return
    values = dict.fromkeys(expression.names, 1.0)
    assert isinstance(expression.evaluate(values, {"a": abs}), float)
