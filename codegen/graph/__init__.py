"""What equations become: symbols, reverse mode, the smallest tape, and their text as C++ and as LaTeX."""
