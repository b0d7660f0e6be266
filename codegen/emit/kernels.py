"""All files of C++ and CUDA, each a relative path and its text. The build's list of sources and their contents come from this one call.

neurons/lif.h            the step and its derivative, for each reset and kind of pass
surrogates/atan.h        gradient and primitive; surrogates/any.h: the one that a number names
cpu/neurons/lif.cpp      the kernels of a neuron, which call a surrogate for a block of neurons
cpu/surrogates/atan.cpp  these surrogates
cuda/lif/shared.cu       the kernels that need no surrogate, and those for any: float64, tensor, smooth and general passes
cuda/lif/recurrent.cu    the kernels that feed the spikes back to it, for any surrogate
cuda/lif/norm.cu         the kernels of a plain pass with a BatchNorm in front; cuda/norm.cu: the BatchNorm alone
cpu/recurrent.cpp        what feeds the spikes of any neuron back to it; cpu/norm.cpp: the BatchNorm in front of any
cuda/lif/atan.cu         BPTT with this surrogate compiled in; of the usual surrogates also that of tensor and general passes
registry.h               names, schemas, parameters and their ranges
cpu/table.cpp            where the host finds the kernels; cuda/table.cpp likewise
cpu/no_cuda.cpp          stands for the latter in a build without CUDA

What is defined at run time is made into a text for each kernel that is asked for, see snnkern/define.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..build import NO_CUDA
from ..specification.base import RESETS, Neuron, Surrogate
from ..specification.check import check_catalogue
from ..specification.neurons import NEURONS
from ..specification.surrogates import SURROGATES
from .schema import DTYPES, HEADER, registry
from .step import (
    any_surrogate_header,
    is_wide,
    kinds,
    neuron_code,
    neuron_header,
    struct_name,
    surrogate_code,
    surrogate_header,
    trace,
)

SMOOTH_DTYPES = ("f32", "f64")
NO_SURROGATE = "none"  # what stands for the surrogate in the combinations of a neuron that has none


@dataclass(frozen=True)
class Selection:
    """What to build: keys of the specification. Everything, unless SNNKERN_ONLY says otherwise.

    In `surrogates`, None stands for the neurons that have none.
    """

    neurons: tuple[type[Neuron], ...] = NEURONS
    surrogates: tuple[type[Surrogate] | None, ...] = (None, *SURROGATES)
    resets: tuple[str, ...] = RESETS
    dtypes: tuple[str, ...] = tuple(DTYPES)

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Reads 'lif:atan,sigmoid:hard:f32'. A field is a comma list or *; fields left out at the end are *."""
        fields = (text or "*").split(":")
        legal: dict[str, dict[str, Any]] = {
            "neuron": {n.name: n for n in NEURONS},
            "surrogate": {NO_SURROGATE: None, **{s.name: s for s in SURROGATES}},
            "reset": {r: r for r in RESETS},
            "dtype": {d: d for d in DTYPES},
        }
        if len(fields) > len(legal):
            raise ValueError(f"SNNKERN_ONLY: expected neuron:surrogate:reset:dtype, got {text!r}")
        chosen: list[tuple[Any, ...]] = []
        for kind, field in zip(legal, fields + ["*"] * (len(legal) - len(fields)), strict=True):
            names = list(legal[kind]) if field.strip() == "*" else [name.strip() for name in field.split(",")]
            for name in names:
                if name not in legal[kind]:
                    raise ValueError(f"SNNKERN_ONLY: unknown {kind} {name!r}; expected one of {', '.join(legal[kind])}")
            chosen.append(tuple(value for name, value in legal[kind].items() if name in names))
        selection = cls(*chosen)
        if not selection.combinations():
            raise ValueError(
                f"SNNKERN_ONLY: {text!r} selects nothing: no neuron in it has such a surrogate and reset; "
                "python -m codegen --list prints every combination"
            )
        return selection

    def of(self, neuron: type[Neuron]) -> Selection:
        """What is built of one neuron: only surrogates and resets that it can have."""
        surrogates = tuple(s for s in self.surrogates if (s is not None) == neuron.has_surrogate)
        resets = tuple(r for r in self.resets if r in neuron.resets())
        built = neuron in self.neurons and surrogates and resets and self.dtypes
        return Selection((neuron,), surrogates, resets, self.dtypes) if built else Selection((), (), (), ())

    def combinations(self) -> list[str]:
        """Every combination built, as 'lif:atan:hard:f32'; 'li:none:soft:f32' where there is no surrogate."""
        return [
            f"{n.name}:{s.name if s else NO_SURROGATE}:{r}:{d}"
            for n in self.neurons
            for s in self.of(n).surrogates
            for r in self.of(n).resets
            for d in self.dtypes
        ]


def files(selection: Selection | None = None) -> dict[str, str]:
    """Every generated C++ and CUDA file of a selection, by its path below csrc/generated."""
    chosen = selection or Selection()
    check_catalogue(NEURONS)
    check_catalogue(SURROGATES)
    out = {"registry.h": registry()}
    for neuron in chosen.neurons:
        out[f"neurons/{neuron.name}.h"] = neuron_header(neuron)
    surrogates = [s for s in chosen.surrogates if s]
    for surrogate in surrogates:
        out[f"surrogates/{surrogate.name}.h"] = surrogate_header(surrogate)
        out[f"cpu/surrogates/{surrogate.name}.cpp"] = cpu_surrogate_file(surrogate)
    out["surrogates/any.h"] = any_surrogate_header(surrogates)
    for neuron in filter(lambda n: chosen.of(n).neurons, chosen.neurons):
        out[f"cpu/neurons/{neuron.name}.cpp"] = cpu_file(neuron, chosen.of(neuron))
        for part in dict.fromkeys((None, *chosen.of(neuron).surrogates)):
            out[f"cuda/{neuron.name}/{part.name if part else 'shared'}.cu"] = cuda_file(neuron, part, chosen.of(neuron))
        out[f"cuda/{neuron.name}/norm.cu"] = cuda_norm_file(neuron, chosen.of(neuron))
        if neuron.spikes():
            out[f"cuda/{neuron.name}/recurrent.cu"] = cuda_recurrent_file(neuron, chosen.of(neuron))
    out["cuda/norm.cu"] = cuda_norm()
    out["cpu/norm.cpp"] = cpu_norm()
    out["cuda/packed.cu"] = packings("cuda")
    out["cpu/packed.cpp"] = packings("cpu")
    out["cpu/recurrent.cpp"] = cpu_recurrent()
    out["cpu/table.cpp"] = cpu_table(chosen)
    out["cuda/table.cpp"] = cuda_table(chosen)
    out[NO_CUDA] = no_cuda()
    return out


# In the order of enum Pass: the kind, and whether it is BPTT.
PASSES = {
    "forward": ("", False),
    "backward": ("", True),
    "tensor_forward": ("tensor", False),
    "tensor_backward": ("tensor", True),
    "smooth_forward": ("smooth", False),
    "smooth_backward": ("smooth", True),
    "general_forward": ("general", False),
    "general_backward": ("general", True),
    "norm_forward": ("norm", False),
    "norm_sums": ("norm", True),
    "norm_backward": ("norm", True),
    "norm_whole": ("norm", True),
}
Kernel = tuple[str, str, str]  # pass, reset, dtype


def _kernels(neuron: type[Neuron], chosen: Selection) -> list[Kernel]:
    """All kernels of a neuron, but for surrogates."""
    return [
        (name, reset, dtype)
        for name in PASSES
        for reset in chosen.resets
        for dtype in chosen.dtypes
        if PASSES[name][0] in kinds(neuron) and (PASSES[name][0] != "smooth" or dtype in SMOOTH_DTYPES)
    ]


def _row(device: str, name: str, made: dict[Kernel, str], visible: str = "") -> str:
    rows = []
    for kind in PASSES:
        cells = ["{" + ", ".join(made.get((kind, r, d), "nullptr") for d in DTYPES) + "}" for r in RESETS]
        rows.append("    {" + ",\n     ".join(cells) + "},")
    lines = "\n".join(rows)
    kernel = {"cpu": "CpuKernel", "cuda": "CudaKernel", "recurrent": "const CudaRecurrence*"}[device]
    return f"extern {visible}const Row<{kernel}> {name};\nconst Row<{kernel}> {name} = {{{{\n{lines}\n}}}};\n"


# Those that most networks are trained with: also the passes for tensors and for conventions have them compiled in.
USUAL_SURROGATES = ("sigmoid", "atan")


def compiled_in(neuron: type[Neuron], surrogate: type[Surrogate], kernel: Kernel) -> bool:
    """Whether a kernel has a copy for this surrogate."""
    name, _, dtype = kernel
    kind, is_backward = PASSES[name]
    wanted = kind == "" or (kind in ("tensor", "general") and surrogate.name in USUAL_SURROGATES)
    return wanted and is_backward and neuron.has_surrogate and dtype != "f64"


def cuda_file(neuron: type[Neuron], surrogate: type[Surrogate] | None, chosen: Selection) -> str:
    """BPTT with a surrogate compiled in; or all kernels of a neuron that have none, or any."""
    made: dict[Kernel, str] = {}
    for kernel in _kernels(neuron, chosen):
        name, reset, dtype = kernel
        kind, is_backward = PASSES[name]
        asks = neuron.has_surrogate and (is_backward or kind == "smooth")
        # float64 is for checking: the passes for tensors do for it.
        shared = not (kind == "" and (dtype == "f64" or asks))
        if not (compiled_in(neuron, surrogate, kernel) if surrogate else shared):
            continue
        used = surrogate.__name__ if surrogate else "AnySurrogate" if asks else "NoSurrogate"
        function = "backward" if is_backward else "forward"
        made[kernel] = f"&{function}<{struct_name(neuron, reset, kind)}, {used}, {DTYPES[dtype]}>"
    if surrogate and surrogate.name in USUAL_SURROGATES:  # by its number, BPTT takes up to 1.8 times as long
        made |= _norm_kernels(neuron, chosen, surrogate.__name__, ("norm_sums", "norm_backward"))
    stem = surrogate.name if surrogate else "any"
    return f"""{HEADER}#include "../../../kernels/{"norm" if surrogate and surrogate.name in USUAL_SURROGATES else "multistep"}.cuh"
#include "../../neurons/{neuron.name}.h"
#include "../../surrogates/{stem}.h"

namespace snnkern::cuda {{

{_row("cuda", f"{neuron.name}_{surrogate.name if surrogate else 'shared'}", made)}
}}  // namespace snnkern::cuda
"""


def _cpu_kernel(neuron: type[Neuron], kernel: Kernel, name: str, in_time: int = 0, like_x: int = 0) -> str:
    """The definition of a kernel of a neuron; see InTime in csrc/kernels/multistep.h."""
    of, reset, dtype = kernel
    kind, is_backward = PASSES[of]
    function = "backward" if is_backward else "forward"
    return (
        f"SNNKERN_CPU_KERNEL void {name}(const KernelArgs& a, const CpuSurrogate* s, int64_t begin, int64_t end) {{\n"
        f"  {function}<{_step(neuron, reset, kind, in_time, like_x)}, {DTYPES[dtype]}>(a, s, begin, end);\n}}\n"
    )


def _step(neuron: type[Neuron], reset: str, kind: str, in_time: int, like_x: int) -> str:
    name = struct_name(neuron, reset, kind)
    return f"InTime<{name}, {in_time}, {like_x}>" if in_time else name


NORM_PASSES = tuple(name for name, (kind, _) in PASSES.items() if kind == "norm")


def _norm_kernels(
    neuron: type[Neuron], chosen: Selection, surrogate: str, passes: Sequence[str] = NORM_PASSES
) -> dict[Kernel, str]:
    made: dict[Kernel, str] = {}
    for name in passes:
        for reset in chosen.resets:
            for dtype in chosen.dtypes:
                if dtype == "f64":  # the BatchNorm alone and the plain pass do for it
                    continue
                used = surrogate if PASSES[name][1] else "NoSurrogate"
                made[name, reset, dtype] = f"&{name}<{struct_name(neuron, reset, '')}, {used}, {DTYPES[dtype]}>"
    return made


def cuda_norm_file(neuron: type[Neuron], chosen: Selection) -> str:
    """The kernels of a neuron with a BatchNorm in front, for any surrogate."""
    made = _norm_kernels(neuron, chosen, "AnySurrogate" if neuron.has_surrogate else "NoSurrogate")
    return f"""{HEADER}#include "../../../kernels/norm.cuh"
#include "../../neurons/{neuron.name}.h"
#include "../../surrogates/any.h"

namespace snnkern::cuda {{

{_row("cuda", f"{neuron.name}_norm", made)}
}}  // namespace snnkern::cuda
"""


def cuda_recurrent_file(neuron: type[Neuron], chosen: Selection) -> str:
    """The kernels of a neuron whose spikes are fed back. Sequences of 16 bits have those for float32."""
    # Tensors have the general kernels as well, where the neuron has some: a step waits for other things.
    whole = "general" if neuron.conventions else "tensor"
    made: dict[Kernel, str] = {}
    for name, (kind, is_backward) in PASSES.items():
        if is_backward or kind == "norm" or (kind and kind not in kinds(neuron)):
            continue
        for reset in chosen.resets:
            for dtype in SMOOTH_DTYPES:
                built = dtype in chosen.dtypes or (dtype == "f32" and set(chosen.dtypes) != {"f64"})
                if not built or (not kind and dtype == "f64"):
                    continue
                step = struct_name(neuron, reset, whole if kind in ("tensor", "general") else kind)
                used = "AnySurrogate" if neuron.has_surrogate else "NoSurrogate"
                made[name, reset, dtype] = f"&kRecurrence<{step}, {used}, {DTYPES[dtype]}>"
    return f"""{HEADER}#include "../../../kernels/recurrent.cuh"
#include "../../neurons/{neuron.name}.h"
#include "../../surrogates/any.h"

namespace snnkern::cuda {{

{_row("recurrent", f"{neuron.name}_recurrent", made)}
}}  // namespace snnkern::cuda
"""


def cuda_norm() -> str:
    """The BatchNorm alone, which no neuron is behind."""
    made = {
        (name, RESETS[0], dtype): f"&{name}<Identity, NoSurrogate, {real}>"
        for name, (kind, _) in PASSES.items()
        for dtype, real in DTYPES.items()
        if kind == "norm" and name != "norm_sums"
    }
    statistics = ", ".join(f"&statistics<{real}>" for real in DTYPES.values())
    return f"""{HEADER}#include "../../kernels/norm.cuh"

namespace snnkern::cuda {{

{_row("cuda", "norm_alone", made, "SNNKERN_EXPORT ")}
extern SNNKERN_EXPORT const CudaKernel norm_statistics[kDtypes];
const CudaKernel norm_statistics[kDtypes] = {{{statistics}}};

}}  // namespace snnkern::cuda
"""


def cpu_file(neuron: type[Neuron], chosen: Selection) -> str:
    """The kernels of a neuron on the CPU."""
    # A named function each: GCC makes clones for several instruction sets of functions, not of templates.
    made = {kernel: f"{neuron.name}_{'_'.join(kernel)}" for kernel in _kernels(neuron, chosen)}
    definitions = "".join(_cpu_kernel(neuron, kernel, name) for kernel, name in made.items())
    return f"""{HEADER}#include "../../../kernels/multistep_cpu.h"
#include "../../neurons/{neuron.name}.h"

namespace snnkern::cpu {{

{definitions}
{_row("cpu", f"{neuron.name}_kernels", {kernel: f"&{name}" for kernel, name in made.items()})}
}}  // namespace snnkern::cpu
"""


# What the stage on the CPU does, and with what; in the order of NormLoops.
NORM_LOOPS = {
    "enter": (),
    "input": ("int64_t t",),
    "output": ("int64_t t", "const void* spike"),
    "grad_output": ("int64_t t",),
    "grad_input": ("int64_t t", "const void* gradient"),
    "leave": (),
}


def packings(device: str) -> str:
    """Spikes in fewer bits, for each dtype."""
    rows = [
        "{"
        + ", ".join(
            "{" + ", ".join(f"&packing<{real}, {values}, {unpack}>" for values in (8, 1)) + "}"
            for unpack in ("false", "true")
        )
        + "}"
        for real in DTYPES.values()
    ]
    header = {"cpu": "packed_cpu.h", "cuda": "packed.cuh"}[device]
    return f"""{HEADER}#include "../../kernels/{header}"

namespace snnkern::{device} {{

extern SNNKERN_EXPORT const Packings kPackings[kDtypes];
const Packings kPackings[kDtypes] = {{{", ".join(rows)}}};

}}  // namespace snnkern::{device}
"""


def cpu_norm() -> str:
    """The BatchNorm on the CPU, for each dtype."""
    definitions = ""
    rows = []
    for dtype, real in DTYPES.items():
        names = [f"norm_{function}_{dtype}" for function in ("stage", "moments", "gradient")]
        rows.append("{" + ", ".join(f"&{name}" for name in names) + "}")
        loops = f"norm_loops_{dtype}"
        for loop, arguments in NORM_LOOPS.items():
            given = "".join(f", {argument}" for argument in arguments)
            passed = ", ".join(argument.split()[-1] for argument in arguments)
            definitions += f"""
SNNKERN_CPU_KERNEL void norm_{loop}_{dtype}(NormStage<{real}>& stage{given}) {{ stage.do_{loop}({passed}); }}"""
        definitions += f"""
const NormLoops<{real}> {loops} = {{{", ".join(f"&norm_{loop}_{dtype}" for loop in NORM_LOOPS)}}};
Stage* {names[0]}(const KernelArgs& a, double* sums) {{
  return new NormStage<{real}>(a, sums, {loops});
}}
SNNKERN_CPU_KERNEL void {names[1]}(const KernelArgs& a, const double* near, double* sums, int64_t begin, int64_t end) {{
  const auto stage = std::make_unique<NormStage<{real}>>(a, sums, {loops});
  for (int64_t first = begin; first < end; first += kCpuBlock) stage->add_moments(Block(a, first, end), near);
}}
SNNKERN_CPU_KERNEL void {names[2]}(const KernelArgs& a, int64_t begin, int64_t end) {{
  const auto stage = std::make_unique<NormStage<{real}>>(a, nullptr, {loops});
  for (int64_t first = begin; first < end; first += kCpuBlock) stage->gradient(Block(a, first, end));
}}
"""
    return f"""{HEADER}#include "../../kernels/norm_cpu.h"

namespace snnkern::cpu {{
{definitions}
extern SNNKERN_EXPORT const CpuNorm kNorm[kDtypes];
const CpuNorm kNorm[kDtypes] = {{{", ".join(rows)}}};

}}  // namespace snnkern::cpu
"""


def cpu_recurrent() -> str:
    """What feeds spikes back on the CPU, for each dtype."""
    definitions = "".join(
        f"{macro} void {name}_{dtype}(const RecurrentArgs& r, const void* from, void* to, int64_t rows) {{\n"
        f"  {name}<{DTYPES[dtype]}>(r, from, to, rows);\n}}\n"
        for name, macro in (
            ("recurrent_product", "SNNKERN_CPU_KERNEL"),
            ("recurrent_product_back", "SNNKERN_CPU_KERNEL SNNKERN_CONTRACT"),
        )
        for dtype in SMOOTH_DTYPES
    )
    rows = []
    for dtype, real in DTYPES.items():
        state = "f64" if dtype == "f64" else "f32"
        products = f"&recurrent_product_{state}, &recurrent_product_back_{state}"
        definitions += f"""
Stage* recurrent_stage_{dtype}(const KernelArgs& a, const RecurrentArgs& r) {{
  return new RecurrentStage<{real}>(a, r, {products});
}}
"""
        rows.append(f"{{&recurrent_stage_{dtype}, &recurrent_product_{state}}}")
    return f"""{HEADER}#include "../../kernels/recurrent_cpu.h"

namespace snnkern::cpu {{

{definitions}
extern SNNKERN_EXPORT const CpuRecurrence kRecurrence[kDtypes];
const CpuRecurrence kRecurrence[kDtypes] = {{{", ".join(rows)}}};

}}  // namespace snnkern::cpu
"""


def cpu_surrogate_file(surrogate: type[Surrogate]) -> str:
    """A surrogate for blocks of neurons."""
    return f"""{HEADER}#include "../../../kernels/multistep_cpu.h"
#include "../../surrogates/{surrogate.name}.h"

{_cpu_surrogate(surrogate, f"{surrogate.name}_surrogate")}"""


def _cpu_surrogate(surrogate: type[Surrogate], table: str) -> str:
    """The functions of a surrogate, and the table that points to them."""
    names: dict[str, list[str]] = {"gradient": [], "primitive": []}
    definitions = ""
    for function, made in names.items():
        for dtype in SMOOTH_DTYPES:
            if function == "primitive" and not surrogate.has_primitive():
                made.append("nullptr")
                continue
            name, real = f"{surrogate.name}_{function}_{dtype}", DTYPES[dtype]
            made.append(f"&{name}")
            definitions += (
                f"SNNKERN_CPU_KERNEL void {name}(const double* parameters, const void* u, void* out) {{\n"
                f"  const {surrogate.__name__}<{real}> surrogate(parameters);\n"
                f"  for_block<{real}>(u, out, [&]({real} x) SNNKERN_INLINE {{ return surrogate.{function}(x); }});\n}}\n"
            )
    rows = ", ".join("{" + ", ".join(made) + "}" for made in names.values())
    return f"""namespace snnkern::cpu {{

{definitions}
extern const CpuSurrogate {table};
const CpuSurrogate {table} = {{{rows}}};

}}  // namespace snnkern::cpu
"""


# ---- at run time: a file for each kernel that is asked for ------------------------------------------------------------

SYMBOL = "snnkern_made"
"""What the one thing is called that such a file defines for others."""


def runtime_cpu_kernel(neuron: type[Neuron], kernel: Kernel, in_time: int = 0, like_x: int = 0) -> str:
    """A kernel of a neuron, on its own; bits of `in_time` and `like_x`: the parameters that change from step to step."""
    name, reset, _ = kernel
    kind, _ = PASSES[name]
    return f"""#include "multistep_cpu.h"

{neuron_code(neuron, {(kind, reset): trace(neuron, reset, kind)})}
namespace snnkern::cpu {{

extern "C" {_cpu_kernel(neuron, kernel, SYMBOL, in_time, like_x)}
}}  // namespace snnkern::cpu
"""


def runtime_cuda_kernel(
    neuron: type[Neuron],
    surrogate: type[Surrogate] | None,
    kernel: Kernel,
    V: int,
    steps: int,
    in_time: int = 0,
    like_x: int = 0,
) -> str | None:
    """The same for CUDA, of a shape of csrc/kernels/shape.h, with the surrogate compiled in; None if it has no such shape."""
    name, reset, dtype = kernel
    kind, is_backward = PASSES[name]
    if V > 1 and not is_wide(neuron, reset, kind):
        return None
    real = "double" if dtype == "f64" else "float"
    used = surrogate.__name__ if surrogate else "NoSurrogate"
    loop, bounds = ("backward", f"kThreads, blocks_wanted<Step, T, {V}>()") if is_backward else ("forward", "kThreads")
    return f"""#include "multistep.cuh"

{neuron_code(neuron, {(kind, reset): trace(neuron, reset, kind)})}
{surrogate_code(surrogate) if surrogate else ""}
namespace snnkern::cuda {{

using Step = {_step(neuron, reset, kind, in_time, like_x)};
using T = {DTYPES[dtype]};
extern "C" __global__ void __launch_bounds__({bounds}) {SYMBOL}(const __grid_constant__ KernelArgs a) {{
  {loop}_loop<Step, {used}<{real}>, T, {V}, {steps}>(a, Step::Params<{real}>(a), {used}<{real}>(a));
}}

}}  // namespace snnkern::cuda
"""


def runtime_cpu_surrogate(surrogate: type[Surrogate]) -> str:
    """A surrogate, on its own."""
    return f"""#include "multistep_cpu.h"

{surrogate_code(surrogate)}
extern "C" {{
{_cpu_surrogate(surrogate, SYMBOL)}}}
"""


def _table(kind: str, name: str, cells: Sequence[Sequence[str]]) -> str:
    """An array, or an array of arrays, of pointers to things that other files define; or null."""
    found = [cell for row in cells for cell in row if cell]
    declarations = "".join(f"extern const {kind} {cell};\n" for cell in found)
    rows = "".join(f"    {{{', '.join(f'&{cell}' if cell else 'nullptr' for cell in row)}}},\n" for row in cells)
    size = f"[{len(cells)}][{len(cells[0])}]"
    return f"{declarations}extern SNNKERN_EXPORT const {kind}* const {name}{size};\nconst {kind}* const {name}{size} = {{\n{rows}}};\n"


def cpu_table(chosen: Selection) -> str:
    """The kernels of each neuron, and each surrogate; null where this build has none."""
    neurons = [[f"{n.name}_kernels" if chosen.of(n).neurons else ""] for n in NEURONS]
    surrogates = [[f"{s.name}_surrogate" if s in chosen.surrogates else ""] for s in SURROGATES]
    return f"""{HEADER}#include "../../kernels/multistep.h"

namespace snnkern::cpu {{

{_table("Row<CpuKernel>", "kNeuronTable", neurons)}
{_table("CpuSurrogate", "kSurrogateTable", surrogates)}
}}  // namespace snnkern::cpu
"""


def cuda_table(chosen: Selection) -> str:
    """[neuron][0: shared, 1 + surrogate, the last: with a BatchNorm] -> row, or null where this build has none; spikes fed back."""
    recurrent = [[f"{n.name}_recurrent" if chosen.of(n).neurons and n.spikes() else ""] for n in NEURONS]
    cells = [
        [
            f"{n.name}_{s.name if s else 'shared'}"
            if chosen.of(n).neurons and (not s or s in chosen.of(n).surrogates)
            else ""
            for s in (None, *SURROGATES)
        ]
        + [f"{n.name}_norm" if chosen.of(n).neurons else ""]
        for n in NEURONS
    ]
    return f"""{HEADER}#include "../../kernels/multistep.h"

namespace snnkern::cuda {{

{_table("Row<CudaKernel>", "kTable", cells)}
{_table("Row<const CudaRecurrence*>", "kRecurrenceTable", recurrent)}
}}  // namespace snnkern::cuda
"""


def no_cuda() -> str:
    """What cuda/table.cpp, cuda/norm.cu and cuda/packed.cu define, all of it null."""
    table = f"kTable[{len(NEURONS)}][{len(SURROGATES) + 2}]"
    recurrent = f"kRecurrenceTable[{len(NEURONS)}][1]"
    return f"""{HEADER}#include "../../kernels/multistep.h"

namespace snnkern::cuda {{

extern SNNKERN_EXPORT const Row<CudaKernel>* const {table};
const Row<CudaKernel>* const {table} = {{}};
extern SNNKERN_EXPORT const Row<const CudaRecurrence*>* const {recurrent};
const Row<const CudaRecurrence*>* const {recurrent} = {{}};
extern SNNKERN_EXPORT const Row<CudaKernel> norm_alone;
const Row<CudaKernel> norm_alone = {{}};
extern SNNKERN_EXPORT const CudaKernel norm_statistics[kDtypes];
const CudaKernel norm_statistics[kDtypes] = {{}};
extern SNNKERN_EXPORT const Packings kPackings[kDtypes];
const Packings kPackings[kDtypes] = {{}};

}}  // namespace snnkern::cuda
"""
