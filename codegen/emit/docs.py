"""Pure: the specification -> the tables of the README, and the pages on neurons and surrogates of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from ..graph.formula import latex, latex_step
from ..specification.base import FIRING, Flag, Float, Neuron, Surrogate
from ..specification.neurons import NEURONS
from ..specification.surrogates import SURROGATES
from .python import function_name, module_arguments, step_equations
from .schema import schemas


def neuron_table() -> str:
    rows = ["| neuron | function, operator | module | equations |", "|---|---|---|---|"]
    for n in NEURONS:
        title = (n.__doc__ or "").split(":")[0].strip().rstrip(".")
        usual = {p.name: p.default for p in FIRING}
        unusual = [p for p in n.firing if p.default != usual[p.name]]
        arguments = _arguments({p.name: _default(p) for p in (*module_arguments(n), *unusual)})
        # Spike and reset stand above the table, where they are those of all neurons.
        own = [e for e in n.firing_equations if e not in Neuron.firing_equations]
        equations = "<br>".join(f"`{' '.join(e.split())}`" for e in (*n.equations, *own))
        rows.append(
            f"| {title} | `functional.{function_name(n)}`, `{n.name}_forward` | `nn.{n.module}({arguments})` | {equations} |"
        )
    return "\n".join(rows)


def surrogate_table() -> str:
    rows = ["| name | class | gradient | primitive |", "|---|---|---|---|"]
    for s in SURROGATES:
        arguments = _arguments({p.name: _default(p) for p in s.parameters})
        cells = (
            f"`{s.name}`",
            f"`{s.__name__}({arguments})`",
            _code(s.gradient_text),
            _code(s.primitive_text) or "none",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _default(p: Float | Flag) -> str:
    """A default as code: 4, 4/3 or 0.95."""
    if isinstance(p, Flag) or p.default is None:
        return repr(p.default)
    fraction = Fraction(p.default).limit_denominator(9)
    short = p.range.integer or (float(fraction) == p.default and len(repr(p.default)) > len("0.125"))
    return str(fraction) if short else repr(p.default)


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _code(text: str) -> str:
    """Text as code in a table cell, where a bar ends the cell."""
    return f"`{text}`".replace("|", "\\|") if text else ""


TABLES = {"neurons": neuron_table, "surrogates": surrogate_table}


def readme(text: str) -> str:
    """The README with its tables made anew, between <!-- name --> and <!-- /name -->."""
    for name, table in TABLES.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not opening or not closing:
            raise ValueError(f"the README must have a place <!-- {name} --> ... <!-- /{name} --> for a table")
        text = f"{before}{opening}{table()}\n{closing}{after}"
    return text


# ---- pages: Markdown for MyST, each with a figure that docs/figures.py draws ------------------------------------------


RESPONSES: dict[str, dict[str, float]] = {
    "izhikevich": {"a": 0.2, "b": 0.4},
    "adex": {"a": 0.2, "b": 0.4},
    "ilif": {"tau": 4.0},
}
"""The parameters of a neuron in its figure, where the defaults would not show all of it."""


def pages() -> dict[str, str]:
    """Every generated page, and what others include, by its path below docs/generated."""
    return {
        "neurons/index.md": neuron_index(),
        **{f"neurons/{n.name}.md": neuron_page(n) for n in NEURONS},
        "surrogates.md": surrogate_page(),
        "api/functional.md": _summary(function_name(n) for n in NEURONS),
        "api/reference.md": _summary(function_name(n) for n in NEURONS),
        "api/nn.md": _summary(n.module for n in NEURONS),
        "api/surrogate.md": _summary(s.__name__ for s in SURROGATES),
    }


def neuron_index() -> str:
    return _text(
        "# Neurons",
        _readme_section("## Neurons", "<!-- neurons -->"),
        "\n".join(f"* [{n.module}]({n.name}.md): {(n.__doc__ or '').strip()}" for n in NEURONS),
        _readme_section("<!-- /neurons -->", "## Kernels of your own"),
        "```{toctree}\n:hidden:\n\n" + "\n".join(n.name for n in NEURONS) + "\n```",
    )


def neuron_page(neuron: type[Neuron]) -> str:
    """The page of one neuron: equations, states, parameters, source, and its response to a step current."""
    names = [name for p in neuron.all_parameters() for name in (p.name, getattr(p, "symbol", p.name))]
    names += [name for t in neuron.learned for name in (t.name, t.weight)]
    states = [s.name for s in neuron.states]
    function = function_name(neuron)
    starts = {"v_reset": "`v_reset`; 0 with soft reset", "0": "0"}
    return _text(
        f"# {neuron.module}",
        (neuron.__doc__ or "").strip(),
        f"Source: {neuron.source}.",
        "## Equations",
        _math(latex_step(step_equations(neuron), names, states)),
        "x is the input, h the potential before firing and reset, s the spike; t is the time step."
        if neuron.firing
        else "x is the input, v the potential and the output; t is the time step.",
        "## Response",
        f"`nn.{neuron.module}({_arguments(RESPONSES.get(neuron.name, {}))})`, the rest at its defaults, while a constant current "
        "flows and after.",
        f"![Response of {neuron.module} to a step current](../figures/{neuron.name}.svg)",
        "## States",
        _table(
            ("state", "meaning", "where it starts"),
            ((f"`{s.name}`", s.doc, starts.get(s.start, f"`{s.start}`")) for s in neuron.states),
        ),
        f"## Module\n\n{_tensors(neuron)}",
        _autodoc("class", f"nn.{neuron.module}", ":members:"),
        "## Function",
        _autodoc("function", f"functional.{function}"),
        "## Reference",
        _autodoc("function", f"reference.{function}"),
        "## Operator",
        f"```text\ntorch.ops.snnkern.{schemas(neuron)['forward']}\n```",
    )


def _tensors(neuron: type[Neuron]) -> str:
    """How a module learns parameters, and what the conventions are."""
    names = [p.name for p in neuron.numbers() if not p.range.integer]
    learned = f"`learn_{names[0]}=True`{' and so on' if len(names) > 1 else ''}"
    text = f"{_list(names)} can be learned, with {learned}: one value, or with `channels=C` one for each channel."
    if neuron.conventions:
        conventions = _list(c.name for c in neuron.conventions)
        text += f" {conventions} are [conventions of other libraries](/migration.md), which change nothing at their defaults."
    return text


def _autodoc(kind: str, name: str, *options: str) -> str:
    lines = [f".. auto{kind}:: snnkern.{name}", *(f"   {option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _summary(names: Iterable[str]) -> str:
    """A table of members of the module at hand that are documented on other pages, with links."""
    lines = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
    return "\n".join(["```{eval-rst}", *lines, "```\n"])


def surrogate_page() -> str:
    """The page of all surrogates: gradient, primitive, parameters, source and curves."""
    parts = ["# Surrogates", _readme_section("## Surrogates", "<!-- surrogates -->")]
    parts.append("Below, g is the gradient and f the primitive; the curves are those of the default parameters.")
    for s in SURROGATES:
        parts += _surrogate_section(s)
    return _text(*parts)


def _surrogate_section(surrogate: type[Surrogate]) -> list[str]:
    known = ["x", *(p.name for p in surrogate.parameters)]
    formulas = [rf"g(x) &= {latex(surrogate.gradient_text, known)}"]
    if surrogate.has_primitive():
        formulas.append(rf"f(x) &= {latex(surrogate.primitive_text, known)}")
    return [
        f"## {surrogate.__name__}",
        f'`surrogate="{surrogate.name}"` in operators.',
        _math(formulas),
        "" if surrogate.has_primitive() else "It has no primitive.",
        f"![Curve of {surrogate.__name__}](figures/surrogate_{surrogate.name}.svg)",
        _autodoc("class", f"surrogate.{surrogate.__name__}"),
    ]


def _text(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _math(lines: Iterable[str]) -> str:
    """Lines of LaTeX as one formula, aligned at &."""
    aligned = " \\\\\n".join(lines)
    return f"```{{math}}\n\\begin{{aligned}}\n{aligned}\n\\end{{aligned}}\n```"


def _readme_section(after: str, before: str) -> str:
    return f'```{{include}} /../README.md\n:start-after: "{after}"\n:end-before: "{before}"\n```'


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
