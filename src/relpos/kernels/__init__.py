"""How attention with a relative term is computed. Kernels know forms, never names."""
