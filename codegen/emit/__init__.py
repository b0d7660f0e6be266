"""Pure: the specification -> {relative path: text}. What is written, and where, is the business of codegen.__main__."""
