"""How kernelised attention is computed: weighted sums of phi(q_i).phi(k_j) v_j, without an n x n tensor."""
