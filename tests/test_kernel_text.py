"""The text of kernels of one's own, token for token: every printed example of the interface they come from."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from snnkern.auto_cuda import base, cfunction, neuron_kernel


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+(?:\.\w+)?|\S", text)


@pytest.fixture
def debug() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(before)


def heaviside() -> base.CKernel1D:
    kernel = base.CKernel1D(kernel_name="heaviside")
    kernel.add_param(ctype="const float *", cname="x")
    kernel.add_param(ctype="float *", cname="y")
    kernel.core = """
    y[index] = x[index] >= 0.0f ? 1.0f: 0.0f;
    """
    return kernel


def cumsum() -> base.CKernel2D:
    kernel = base.CKernel2D(kernel_name="cumsum")
    kernel.add_param(ctype="const float *", cname="x")
    kernel.add_param(ctype="float *", cname="y")
    kernel.core = """
    if (t - dt < 0)
    {
        y[t] = x[t];
    }
    else
    {
        y[t] = x[t] + y[t - dt];
    }
    """
    return kernel


PLAIN = {
    "CKernel": (
        lambda: base.CKernel(kernel_name="example_ck"),
        '#include <cuda_fp16.h> extern "C" __global__ void example_ck( ) {}',
    ),
    "CKernel1D": (
        lambda: base.CKernel1D(kernel_name="temp_kernel"),
        '#include <cuda_fp16.h> extern "C" __global__ void temp_kernel( const int & numel ) '
        "{ const int index = blockIdx.x * blockDim.x + threadIdx.x; if (index < numel) { } }",
    ),
    "CKernel2D": (
        lambda: base.CKernel2D(kernel_name="temp_kernel"),
        '#include <cuda_fp16.h> extern "C" __global__ void temp_kernel( const int & numel, const int & N ) '
        "{ const int index = blockIdx.x * blockDim.x + threadIdx.x; if (index < N) { const int dt = N; "
        "for(int t = index; t < numel; t += dt) { } } }",
    ),
    "heaviside": (
        heaviside,
        '#include <cuda_fp16.h> extern "C" __global__ void heaviside( const int & numel, const float * x, float * y ) '
        "{ const int index = blockIdx.x * blockDim.x + threadIdx.x; if (index < numel) "
        "{ y[index] = x[index] >= 0.0f ? 1.0f: 0.0f; } }",
    ),
    "cumsum": (
        cumsum,
        '#include <cuda_fp16.h> extern "C" __global__ void cumsum( const int & numel, const int & N, const float * x, float * y ) '
        "{ const int index = blockIdx.x * blockDim.x + threadIdx.x; if (index < N) { const int dt = N; "
        "for(int t = index; t < numel; t += dt) { if (t - dt < 0) { y[t] = x[t]; } else { y[t] = x[t] + y[t - dt]; } } } }",
    ),
}
DEBUG = {
    "CKernel": '//------declaration start------ #include <cuda_fp16.h> extern "C" __global__ void example_ck( ) '
    "//------declaration end-------- //------head start------ { //------head end-------- //------core start------ "
    "//------core end-------- //------tail start------ } //------tail end--------",
    "CKernel1D": '//------declaration start------ #include <cuda_fp16.h> extern "C" __global__ void temp_kernel( '
    "const int & numel ) //------declaration end-------- //------head start------ { const int index = blockIdx.x * blockDim.x "
    "+ threadIdx.x; if (index < numel) { //------head end-------- //------core start------ //------core end-------- "
    "//------tail start------ } } //------tail end--------",
    "CKernel2D": '//------declaration start------ #include <cuda_fp16.h> extern "C" __global__ void temp_kernel( '
    "const int & numel, const int & N ) //------declaration end-------- //------head start------ { const int index = "
    "blockIdx.x * blockDim.x + threadIdx.x; if (index < N) { const int dt = N; //------pre_core start------ "
    "//------pre_core end-------- for(int t = index; t < numel; t += dt) { //------head end-------- "
    "//------core start------ //------core end-------- //------tail start------ } //------post_core start------ "
    "//------post_core end-------- } } //------tail end--------",
}


@pytest.mark.parametrize("name", PLAIN)
def test_kernels(name: str) -> None:
    make, expected = PLAIN[name]
    assert tokens(make().full_codes) == tokens(expected)


@pytest.mark.parametrize("name", DEBUG)
def test_debugging_shows_the_parts(name: str, debug: None) -> None:
    assert tokens(PLAIN[name][0]().full_codes) == tokens(DEBUG[name])


def test_parameters_are_printed_in_the_order_in_which_they_were_added() -> None:
    kernel = base.CKernel1D(kernel_name="example_ck")
    origin = kernel.full_codes
    kernel.add_param(ctype="const float*", cname="x")
    kernel.add_param(ctype="const float*", cname="y")
    kernel.add_param(ctype="float", cname="z")
    declaration = '#include <cuda_fp16.h> extern "C" __global__ void example_ck( const int & numel'
    assert tokens(origin)[: len(tokens(declaration)) + 1] == tokens(f"{declaration} )")
    after = tokens(f"{declaration}, const float* x, const float* y, float z )")
    assert tokens(kernel.full_codes)[: len(after)] == after


def test_code_typer() -> None:
    code0 = cfunction.if_else(z="z", x="x", y="y", mask="mask", dtype="float")
    code1 = cfunction.sigmoid_backward(y="y", x="x", alpha=2.0, dtype="float")
    expected = (
        "z = x * mask + y * (1.0f - mask); const float sigmoid_backward__sigmoid_ax = 1.0f / (1.0f + expf(- (2.0f) * x)); "
        "y = (1.0f - sigmoid_backward__sigmoid_ax) * sigmoid_backward__sigmoid_ax * (2.0f);"
    )
    assert tokens(code0 + code1) == tokens(expected)
    typer = base.CodeTyper(4)
    typer.append(code0)
    typer.append(code1)
    assert tokens(typer.codes) == tokens(expected)
    assert [line[:5].count(" ") for line in typer.codes.strip("\n").splitlines()] == [4, 4, 4]  # a statement a line


def test_code_block() -> None:
    typer = base.CodeTyper(4)
    with base.CodeBlock(typer):
        typer.append("// swap x and y")
        typer.append("float temp_var = x;")
        typer.append("x = y;")
        typer.append("y = temp_var;")
    assert tokens(typer.codes) == tokens("{ // swap x and y; float temp_var = x; x = y; y = temp_var; }")
    inner, outer = (next(len(s) - len(s.lstrip()) for s in typer.codes.splitlines() if m in s) for m in ("swap", "{"))
    assert inner > outer == 4


@pytest.mark.parametrize("dtype", ["float", "half2"])
def test_the_integrate_and_fire_neuron_defines_itself_as_documented(dtype: str) -> None:
    forward = neuron_kernel.IFNodeFPTTKernel(hard_reset=True, dtype=dtype)
    backward = neuron_kernel.IFNodeBPTTKernel(lambda y, x, dtype: "", hard_reset=True, detach_reset=False, dtype=dtype)
    charge = {
        cfunction.add(z="h_seq[t]", x=a, y=b, dtype=dtype)
        for a, b in (("x_seq[t]", "v_v_seq[t]"), ("v_v_seq[t]", "x_seq[t]"))
    }
    assert forward.neuronal_charge() in charge  # a sum has no order
    for name in ("grad_h_next_to_v", "grad_h_to_x"):
        assert getattr(backward, name)() == cfunction.constant(y=f"const {dtype} {name}", x=1.0, dtype=dtype)


# ---- what the printed examples do not show ----------------------------------------------------------------------------


def test_the_typer_renames_a_temporary_when_it_appears_again() -> None:
    typer = base.CodeTyper(0)
    once = cfunction.sigmoid_backward(y="a", x="x", alpha=2.0, dtype="float")
    for _ in range(3):
        typer.append(once)
    declared = re.findall(r"const float (\w+)", typer.codes)
    assert declared == ["sigmoid_backward__sigmoid_ax" + suffix for suffix in ("", "_2", "_3")]
    third = typer.codes.strip().splitlines()[-1]
    assert third.count("sigmoid_backward__sigmoid_ax_3") == 2 and "ax)" not in third
    other = base.CodeTyper(0)
    other.append(once)
    assert tokens(other.codes) == tokens(once)


def test_the_typer_keeps_statements_whole() -> None:
    typer = base.CodeTyper(2)
    typer.append("#pragma unroll\nfor (int i = 0; i < 3; ++i) { a += f(i); }")
    typer.append("if (x)")
    typer.append("{ y = 1; } else { y = 2; }")
    typer.append('float z[2] = {1.0f, 2.0f}; s = "a;b"; // to the end; of the line\nw = 3')
    typer.append("#if A\nv = 1;\n#endif")
    assert typer.codes.strip("\n").splitlines() == [
        "#pragma unroll", "  for (int i = 0; i < 3; ++i) {", "  a += f(i);", "  }", "  if (x)", "  {", "  y = 1;", "  }",
        "  else {", "  y = 2;", "  }", "  float z[2] = {1.0f, 2.0f};", '  s = "a;b";', "  // to the end; of the line;", "  w = 3;",
        "#if A", "  v = 1;", "#endif",
    ]  # fmt: skip


def test_a_reversed_kernel_walks_from_the_last_step() -> None:
    assert "for(int t = numel - N + index; t >= 0; t -= dt)" in base.CKernel2D("k", reverse=True).full_codes


def test_parts_may_be_assigned() -> None:
    kernel = base.CKernel2D("k")
    kernel.pre_core, kernel.core, kernel.post_core = "before;", "during;", "after;"
    order = [kernel.full_codes.index(word) for word in ("before", "for(", "during", "after")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("cname", "message"),
    [
        ("numel", "cname 'numel' is a parameter of k already"),
        ("index", "cname 'index' is reserved in k"),
        ("dt", "cname 'dt' is reserved in k"),
        ("t", "cname 't' is reserved in k"),
        ("a-b", "cname must be a name in C, got 'a-b'"),
    ],
)
def test_names_of_parameters(cname: str, message: str) -> None:
    kernel = base.CKernel2D("k")
    before = dict(kernel.cparams)
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel.add_param("float *", cname)
    assert kernel.cparams == before


def test_critical_attributes() -> None:
    assert base.CKernel("k").cparams == {} and base.CKernel("k").reserved_cnames == []
    assert base.CKernel1D("k").cparams == {"numel": "const int &"} and base.CKernel1D("k").reserved_cnames == ["index"]
    assert base.CKernel2D("k").cparams == {"numel": "const int &", "N": "const int &"}
    assert base.CKernel2D("k").reserved_cnames == ["index", "dt", "t"]


def test_check_attributes() -> None:
    kernel = neuron_kernel.LIFNodeFPTTKernel(decay_input=True, hard_reset=False, dtype="half2")
    assert kernel.check_attributes(decay_input=True, hard_reset=False, dtype="half2")
    assert not kernel.check_attributes(decay_input=True, hard_reset=True)
    assert not kernel.check_attributes(no_such_attribute=1)
    with pytest.raises(ValueError, match="kernel_name must be a name in C, got 'a b'"):
        base.CKernel("a b")
