"""Kernels in Triton, for CUDA devices; on a CPU they run in Triton's interpreter, for tests.

`call` alone imports without Triton; the others are imported when a call is served.
"""
