"""Ready networks made of mixers."""

from relpos.models.transformer import Transformer

__all__ = ["Transformer"]
