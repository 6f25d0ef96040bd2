"""Ready networks made of mixers."""

from relpos.models.classifier import Classifier
from relpos.models.transformer import Stack, Transformer

__all__ = ["Classifier", "Stack", "Transformer"]
