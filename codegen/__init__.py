"""The generator of snnkern's kernels. `python -m codegen` writes csrc/generated."""
