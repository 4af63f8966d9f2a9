"""Steps on a CPU as lists of instructions, which numba compiles an interpreter for (the extra
`cpu`).

An instruction is a row of integers: what it does, sizes, strides in bytes, and addresses. A program
of them computes a whole step of a model, all element-wise work in the epilogues of its products, in
machine code without a single call of torch's.
"""
