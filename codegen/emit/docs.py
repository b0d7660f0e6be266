"""Pure: the specification -> the pages on neurons and surrogates: Markdown for MyST, with figures that docs/figures.py draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..graph.formula import latex, latex_step
from ..specification.base import Neuron, Surrogate
from ..specification.neurons import NEURONS
from ..specification.surrogates import SURROGATES
from .python import batch_norm_name, forms, function_name, module_name, step_equations
from .schema import schemas


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


RESPONSES: dict[str, dict[str, float]] = {
    "izhikevich": {"a": 0.2, "b": 0.4},
    "adex": {"a": 0.2, "b": 0.4},
    "ilif": {"tau": 4.0},
}
"""The parameters of a neuron in its figure, where the defaults would not show all of it."""


def pages() -> dict[str, str]:
    """Every generated page, and what others include, by its path below docs/generated."""
    return {
        "neurons/list.md": neuron_list(),
        **{f"neurons/{n.name}.md": neuron_page(n) for n in NEURONS},
        "surrogates.md": surrogate_sections(),
        "api/functional.md": _summary(
            [*(function_name(*form) for form in forms(NEURONS)), *(batch_norm_name(n) for n in NEURONS)]
        ),
        "api/reference.md": _summary(function_name(*form) for form in forms(NEURONS)),
        "api/nn.md": _summary(module_name(*form) for form in forms(NEURONS)),
        "api/surrogate.md": _summary(s.__name__ for s in SURROGATES),
    }


def neuron_list() -> str:
    """A line for each neuron; docs/neurons.md includes it."""
    return _text(
        "\n".join(f"* [{n.module}](/generated/neurons/{n.name}.md): {(n.__doc__ or '').strip()}" for n in NEURONS),
        "```{toctree}\n:hidden:\n\n" + "\n".join(f"/generated/neurons/{n.name}" for n in NEURONS) + "\n```",
    )


def neuron_page(neuron: type[Neuron]) -> str:
    """The page of one neuron: equations, states, parameters, source, and its response to a step current."""
    names = [name for p in neuron.all_parameters() for name in (p.name, getattr(p, "symbol", p.name))]
    names += [name for t in neuron.learned for name in (t.name, t.weight)]
    states = [s.name for s in neuron.states]
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
        *_calls(neuron, False, "##"),
        *(["## Recurrent layer", _RECURRENT, *_calls(neuron, True, "###")] if neuron.spikes() else []),
    )


_RECURRENT = "[Its spikes come back to it](/guide/recurrent.md), through weights, in the next step."


def _calls(neuron: type[Neuron], recurrent: bool, level: str) -> list[str]:
    """Module, function, reference and operator, the last three under headings of that level."""
    function = function_name(neuron, recurrent)
    behind_a_norm = [
        f"{level} Function, behind a BatchNorm",
        _autodoc("function", f"functional.{batch_norm_name(neuron)}"),
    ] * (not recurrent)
    return [
        _autodoc("class", f"nn.{module_name(neuron, recurrent)}", ":members:"),
        f"{level} {'Recurrent function' if recurrent else 'Function'}",
        _autodoc("function", f"functional.{function}"),
        *behind_a_norm,
        f"{level} {'Recurrent reference' if recurrent else 'Reference'}",
        _autodoc("function", f"reference.{function}"),
        f"{level} {'Recurrent operator' if recurrent else 'Operator'}",
        f"```text\ntorch.ops.snnkern.{schemas(neuron, recurrent)['forward']}\n```",
    ]


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


def surrogate_sections() -> str:
    """Each surrogate with gradient, primitive, parameters, source and curves; docs/surrogates.md includes it."""
    return _text(*(part for s in SURROGATES for part in _surrogate_section(s)))


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
        f"![Curve of {surrogate.__name__}](/generated/figures/surrogate_{surrogate.name}.svg)",
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


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
