"""The formulas that docs show: read from the text in which neurons.py and surrogates.py state them, printed as LaTeX.

    h = v + (x - (v - v_reset)) * decay   (decay_input=False)     an equation; two spaces before a note
    alpha/2 e^(-alpha |x|)                                        factors side by side are multiplied, from left to right
    1/(2 w) for |x| < w, else c                                   cases
    v_reset if s else h                                           the same, as Python writes it
    1 if r <= 0 and 0 <= h <= 1 else 0                            a condition of several comparisons
    ds/dh = 1 / v_threshold                                       an equation for a derivative
    4/T sum_{i=1}^{n-1} cos((2i-1) 2 pi x/T)                      a sum; f(x) without a space is a function's value

What cannot be read is an error: a name that is not given, a function that is not in FUNCTIONS, a stray character.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# How a function is written in LaTeX, before its arguments.
FUNCTIONS: dict[str, str] = {
    **{name: rf"\{name}" for name in ("sin", "cos", "tan", "tanh", "exp", "ln", "min", "max")},
    **{
        name: rf"\operatorname{{{name}}}"
        for name in ("sigmoid", "relu", "erf", "erfc", "clip", "clamp", "round", "sgn")
    },
    "log": r"\ln",
    "atan": r"\arctan",
    "H": "H",
    "L": "L",
    "N": r"\mathcal{N}",
}
# Functions that enclose their argument.
_ENCLOSING = {"abs": ("|", "|"), "sqrt": (r"\sqrt{", "}"), "floor": (r"\lfloor ", r" \rfloor")}

_GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|psi|omega"
)
_CONSTANTS = frozenset(("e", "pi"))
_KEYWORDS = frozenset(("for", "else", "if", "and"))
_COMPARISONS = {"<": " < ", "<=": r" \le ", ">": " > ", ">=": r" \ge ", "=": " = ", "==": " = "}
_SIGNS = {"+": " + ", "-": " - ", "*": r" \cdot ", " ": r"\,", **_COMPARISONS}
_PRECEDENCE = {"+": 1, "-": 1, "neg": 1, "*": 2, " ": 2, "sum": 2, "/": 3, "^": 4}
_ATOM = 5
_TOKEN = re.compile(
    r"(?P<space>\s*)(?:(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<name>[A-Za-z]\w*)|(?P<sign><=|>=|==|[-+*/^()|<>=,;{}])|(?P<end>$))"
)


@dataclass(frozen=True)
class Node:
    """A part of a formula: what it is, its parts, and for a number or a name its text.

    op is number, name, neg, if (condition, a, b), and, call (its text the function), sum (index, first, last, term), one of
    + - * / ^ or a space for factors side by side, or a comparison. a < b < c is 'a < b and b < c', with one node b.
    """

    op: str
    args: tuple[Node, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Equation:
    """target = formula, with a note that says when."""

    target: str
    formula: Node
    note: str = ""


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, bool]] = []  # kind, text, whether a space is before it
        self.next = 0
        self.in_bars = False
        at = 0
        while True:
            match = _TOKEN.match(text, at)
            if not match or not match.lastgroup:
                raise ValueError(f"cannot read {text!r}: what is {text[at:].strip()[:1]!r}?")
            self.tokens.append((match.lastgroup, match[match.lastgroup], bool(match["space"])))
            if match.lastgroup == "end":
                return
            at = match.end()

    def peek(self) -> str:
        return self.tokens[self.next][1]

    def kind(self) -> str:
        kind, text, _ = self.tokens[self.next]
        return "keyword" if text in _KEYWORDS else kind

    def take(self, *texts: str) -> str:
        """The next token if it is one of these, else nothing."""
        token = self.peek()
        if token not in texts:
            return ""
        self.next += 1
        return token

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise ValueError(f"cannot read {self.text!r}: expected {text!r}, found {self.peek() or 'the end'!r}")

    def formula(self) -> Node:
        """Everything up to the end: cases, separated by commas or semicolons; the one without a condition is 'otherwise'."""
        cases: list[tuple[Node, Node | None]] = []
        while True:
            self.take("else")
            value = self.expression()
            cases.append((value, self.condition() if self.take("for") else None))
            if not self.take(",", ";"):
                break
        if self.kind() != "end":
            raise ValueError(f"cannot read {self.text!r}: what is {self.peek()!r} there?")
        otherwise = [value for value, condition in cases if condition is None]
        if len(otherwise) != 1:
            raise ValueError(f"cannot read {self.text!r}: one case must be without a condition, found {len(otherwise)}")
        result = otherwise[0]
        for value, condition in reversed(cases):
            if condition is not None:
                result = Node("if", (condition, value, result))
        return result

    def expression(self) -> Node:
        value = self.comparison()
        if not self.take("if"):
            return value
        condition = self.condition()
        self.expect("else")
        return Node("if", (condition, value, self.expression()))

    def condition(self) -> Node:
        left = self.comparison()
        while self.take("and"):
            left = Node("and", (left, self.comparison()))
        return left

    def comparison(self) -> Node:
        left = self.sum()
        if not (sign := self.take(*_COMPARISONS)):
            return left
        middle = self.sum()
        first = Node(sign, (left, middle))
        sign = self.take(*_COMPARISONS)
        return Node("and", (first, Node(sign, (middle, self.sum())))) if sign else first

    def sum(self) -> Node:
        left = Node("neg", (self.product(),)) if self.take("-") else self.product()
        while sign := self.take("+", "-"):
            left = Node(sign, (left, self.product()))
        return left

    def product(self) -> Node:
        left = self.power()
        while True:
            if sign := self.take("*", "/"):
                left = Node(sign, (left, self.power()))
            elif self.kind() in ("name", "number") or self.peek() == "(" or (self.peek() == "|" and not self.in_bars):
                left = Node(" ", (left, self.power()))
            else:
                return left

    def power(self) -> Node:
        base = self.atom()
        return Node("^", (base, self.exponent())) if self.take("^") else base

    def exponent(self) -> Node:
        if self.take("{"):
            return self.inside("}")
        return Node("neg", (self.power(),)) if self.take("-") else self.power()

    def atom(self) -> Node:
        kind, text = self.kind(), self.peek()
        self.next += kind != "end"
        if kind == "number":
            return Node("number", text=text)
        if text == "(":
            return self.inside(")")
        if text == "|":
            return Node("call", (self.inside("|"),), "abs")
        if text == "sum_":
            return self.series()
        if kind == "name":
            if self.peek() != "(" or self.tokens[self.next][2]:
                return Node("name", text=text)
            if text not in FUNCTIONS and text not in _ENCLOSING:
                known = ", ".join((*FUNCTIONS, *_ENCLOSING))
                raise ValueError(f"cannot read {self.text!r}: {text} is not a known function; these are: {known}")
            return self.call(text)
        raise ValueError(f"cannot read {self.text!r}: expected a value, found {text or 'the end'!r}")

    def inside(self, closing: str) -> Node:
        """An expression and what closes it. Within other brackets, a bar opens again."""
        outer, self.in_bars = self.in_bars, closing == "|"
        value = self.expression()
        self.expect(closing)
        self.in_bars = outer
        return value

    def call(self, name: str) -> Node:
        outer, self.in_bars = self.in_bars, False
        self.expect("(")
        arguments = [self.expression()]
        while self.take(",", ";"):
            arguments.append(self.expression())
        self.expect(")")
        self.in_bars = outer
        return Node("call", tuple(arguments), name)

    def series(self) -> Node:
        """What follows sum_: {i=1}^{n-1} term."""
        self.expect("{")
        index = self.atom()
        self.expect("=")
        first = self.inside("}")
        self.expect("^")
        return Node("sum", (index, first, self.exponent(), self.product()))


def read(text: str) -> Node:
    """The tree of a formula; ValueError says what cannot be read."""
    return _Reader(text).formula()


def read_equation(text: str) -> Equation:
    """The parts of 'target = formula   (note)'."""
    match = re.fullmatch(r"\s*(\w+|d\w+/d\w+)\s*=(?!=)\s*(.*?\S)(?:\s{2,}\(([^()]*)\))?\s*", text)
    if not match:
        raise ValueError(
            f"cannot read {text!r}: an equation is 'name = formula', then perhaps two spaces and '(a note)'"
        )
    return Equation(match[1], read(match[2]), match[3] or "")


def names(node: Node) -> set[str]:
    """The names that a formula uses, but for e, pi and the indices of its sums."""
    if node.op == "name":
        return {node.text} - _CONSTANTS
    used = {name for a in node.args for name in names(a)}
    return used - {node.args[0].text} if node.op == "sum" else used


# ---- LaTeX ------------------------------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    return text.replace("_", r"\_")


def symbol(name: str) -> str:
    """A name as a symbol: v_reset has a subscript, a0 too, tau is Greek, decay is a word."""
    head, _, below = name.partition("_")
    if not below and (match := re.fullmatch(r"([a-zA-Z])(\d+)", head)):
        head, below = match.groups()
    greek = _GREEK.fullmatch(head)
    if len(head) > 1 and not greek:
        return rf"\mathrm{{{_escaped(name)}}}"
    text = rf"\{head}" if greek else head
    if not below:
        return text
    below = _escaped(below)
    return f"{text}_{{{below}}}" if len(below) == 1 else rf"{text}_{{\mathrm{{{below}}}}}"


def latex(text: str, known: Collection[str]) -> str:
    """A formula's text as LaTeX. `known` are the names it may use."""
    return _Printer({name: symbol(name) for name in known}, text).print(read(text))


def latex_step(lines: Iterable[str], parameters: Collection[str], states: Collection[str]) -> list[str]:
    """The equations of one time step as lines of LaTeX, to be aligned at &.

    What changes over time gets its step: x[t], and a state is v[t-1] until its equation, v[t] afterwards. Lines one after
    another for one state are alternatives, each with a note.
    """
    symbols = {p: symbol(p) for p in parameters} | {s: f"{symbol(s)}[t-1]" for s in states} | {"x": "x[t]"}
    before, changed = "", ""
    out = []
    for line in lines:
        equation = read_equation(line)
        if equation.target != before and changed:
            symbols[before] = changed
            changed = ""
        right = _Printer(symbols, line).print(equation.formula)
        moves = equation.target in states or any("[t" in symbols[name] for name in names(equation.formula))
        before, left = equation.target, _target(equation.target, "[t]" if moves else "")
        if equation.target in states:
            changed = left
        else:
            symbols[equation.target] = left
        out.append(rf"{left} &= {right}" + (rf" \qquad {_note(equation.note)}" if equation.note else ""))
    return out


def _target(name: str, step: str) -> str:
    """The left side of an equation; ds/dh is a derivative."""
    over, _, below = name.partition("/")
    if not below:
        return symbol(name) + step
    return rf"\frac{{\mathrm{{d}}{symbol(over[1:])}{step}}}{{\mathrm{{d}}{symbol(below[1:])}{step}}}"


def _note(text: str) -> str:
    """A note as LaTeX: words as text, code in the face of code."""
    parts = re.split(r"(\w+=\w+|\w*_\w+)", text)
    faces = (r"\text{", r"\mathtt{")
    return f"({''.join(faces[i % 2] + _escaped(part) + '}' for i, part in enumerate(parts) if part)})"


def _parentheses(text: str) -> str:
    tall = any(what in text for what in (r"\frac", r"\sum", r"\begin"))
    return rf"\left({text}\right)" if tall else f"({text})"


class _Printer:
    """Prints trees as LaTeX; `symbols` are the names that they may use."""

    def __init__(self, symbols: Mapping[str, str], source: str) -> None:
        self.symbols = symbols
        self.source = source

    def print(self, node: Node, precedence: int = 0) -> str:
        """A part, in parentheses if it binds less than `precedence`."""
        text, own = self.part(node)
        return _parentheses(text) if own < precedence else text

    def part(self, node: Node) -> tuple[str, int]:
        op, args = node.op, node.args
        if op == "number":
            return self.number(node.text), _ATOM
        if op == "name":
            return self.name(node.text), _ATOM
        if op == "call":
            return self.call(node), _ATOM
        if op == "if":
            return self.cases(node), 0
        if op == "sum":
            return self.series(node), _PRECEDENCE[op]
        if op == "and":
            first, second = args
            if first.op != "and" and first.args[1] is second.args[0]:
                return self.print(first) + _SIGNS[second.op] + self.print(second.args[1], 1), 0
            return rf"{self.print(first)} \text{{ and }} {self.print(second)}", 0
        if op == "/":
            return rf"\frac{{{self.print(args[0])}}}{{{self.print(args[1])}}}", _PRECEDENCE[op]
        if op == "neg":
            return f"-{self.print(args[0], _PRECEDENCE[op] + 1)}", _PRECEDENCE[op]
        if op == "^":
            return f"{self.print(args[0], _PRECEDENCE[op] + 1)}^{{{self.print(args[1])}}}", _PRECEDENCE[op]
        own = _PRECEDENCE.get(op, 0)
        sign = "" if op == " " and args[0].op == "number" and args[1].op != "number" else _SIGNS[op]
        right = self.print(args[1], own if args[1].op == "sum" else own + 1)  # a sum takes all that follows, as here
        return self.print(args[0], own) + sign + right, own

    def number(self, text: str) -> str:
        mantissa, _, exponent = text.partition("e")
        if not exponent:
            return text
        return f"10^{{{exponent}}}" if mantissa == "1" else rf"{mantissa} \cdot 10^{{{exponent}}}"

    def name(self, text: str) -> str:
        if text in self.symbols:
            return self.symbols[text]
        if text in _CONSTANTS:
            return symbol(text)
        known = ", ".join(self.symbols)
        raise ValueError(f"cannot read {self.source!r}: {text} is not a known name; these are: {known}")

    def call(self, node: Node) -> str:
        first, *others = map(self.print, node.args)
        if node.text in _ENCLOSING:
            opening, closing = _ENCLOSING[node.text]
            return opening + first + closing
        separator = r";\, " if node.text == "N" else r",\, "
        return FUNCTIONS[node.text] + _parentheses(separator.join([first, r",\, ".join(others)] if others else [first]))

    def series(self, node: Node) -> str:
        index, first, last, term = node.args
        inner = _Printer({**self.symbols, index.text: symbol(index.text)}, self.source)
        low, high = inner.print(first), inner.print(last)
        return rf"\sum_{{{symbol(index.text)}={low}}}^{{{high}}} {inner.print(term, _PRECEDENCE['sum'])}"

    def cases(self, node: Node) -> str:
        rows = []
        while node.op == "if":
            condition, value, node = node.args
            rows.append(rf"{self.print(value)} & \text{{if }} {self.print(condition)}")
        rows.append(rf"{self.print(node)} & \text{{otherwise}}")
        return r"\begin{cases}" + r" \\ ".join(rows) + r"\end{cases}"
