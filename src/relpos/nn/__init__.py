"""relpos under the names and signatures of torch.nn."""

from relpos.nn.multihead import MultiheadAttention

__all__ = ["MultiheadAttention"]
