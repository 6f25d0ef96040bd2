"""Ready networks made of mixers."""

from relpos.models.seq2seq import Seq2Seq
from relpos.models.transformer import Transformer

__all__ = ["Seq2Seq", "Transformer"]
