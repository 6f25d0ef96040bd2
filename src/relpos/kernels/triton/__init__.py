"""Kernels in Triton, for CUDA devices; on a CPU they run in Triton's interpreter, for tests. `call` alone imports without Triton."""
