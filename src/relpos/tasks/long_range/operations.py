"""The language of ListOps: tokens, their written form, and the value of an expression. See `listops` for its source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

OPERATIONS = ("MIN", "MAX", "MED", "SM")
PADDING, FIRST_DIGIT, FIRST_OPERATION, CLOSE, VOCABULARY = 0, 1, 11, 15, 17
CLASSES = 10

_SYMBOLS = {
    **{str(digit): FIRST_DIGIT + digit for digit in range(10)},
    **{f"[{name}": FIRST_OPERATION + index for index, name in enumerate(OPERATIONS)},
    "]": CLOSE,
    "X": CLOSE,
}
_TEXTS = {**{number: text for text, number in _SYMBOLS.items()}, CLOSE: "]"}
_NO_PARENTHESES = str.maketrans("", "", "()")

T = TypeVar("T")


def tokenise(text: str) -> np.ndarray:
    """Token ids of a written expression; parentheses carry nothing and are dropped. ValueError for other symbols."""
    symbols = text.translate(_NO_PARENTHESES).split()
    try:
        return np.array([_SYMBOLS[symbol] for symbol in symbols], dtype=np.uint8)
    except KeyError as error:
        raise ValueError(f"unknown symbol {error.args[0]!r}; known: ( ) {' '.join(_SYMBOLS)}") from None


def write(tokens: Iterable[int]) -> str:
    """The written form, pairs nested to the left: ``( ( ( [MAX 3 ) 5 ) ] )``. ValueError for half an expression."""
    stack: list[list[str]] = [[]]
    for token in tokens:
        token = int(token)
        if FIRST_DIGIT <= token < FIRST_OPERATION:
            stack[-1].append(_TEXTS[token])
        elif FIRST_OPERATION <= token < CLOSE:
            stack.append([_TEXTS[token]])
        else:
            name, *arguments = _closed(stack, token)
            body = "".join(f" {argument} )" for argument in arguments)
            stack[-1].append(f"{'( ' * (len(arguments) + 1)}{name}{body} ] )")
    return _only(stack)


def evaluate(tokens: Iterable[int]) -> int:
    """The value, 0..9, of one expression. ValueError where the tokens are not exactly one."""
    stack: list[list[int]] = [[]]
    for token in tokens:
        token = int(token)
        if FIRST_DIGIT <= token < FIRST_OPERATION:
            stack[-1].append(token - FIRST_DIGIT)
        elif FIRST_OPERATION <= token < CLOSE:
            stack.append([token])
        else:
            operation, *arguments = _closed(stack, token)
            stack[-1].append(_apply(OPERATIONS[operation - FIRST_OPERATION], arguments))
    return _only(stack)


def _apply(operation: str, arguments: list[int]) -> int:
    if operation == "MIN":
        return min(arguments)
    if operation == "MAX":
        return max(arguments)
    if operation == "SM":
        return sum(arguments) % 10
    ordered = sorted(arguments)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


def _closed(stack: list[list[T]], token: int) -> list[T]:
    if token != CLOSE:
        raise ValueError(f"token {token} is no part of an expression; allowed are 1..{CLOSE}, without padding")
    if len(stack) == 1:
        raise ValueError("a bracket is closed that was never opened")
    if len(stack[-1]) == 1:
        raise ValueError("an operation has no arguments")
    return stack.pop()


def _only(stack: list[list[T]]) -> T:
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError(f"expected one whole expression, got {len(stack[0])} and {len(stack) - 1} open brackets")
    return stack[0][0]
