"""Ready networks made of mixers."""

from relpos.models.classifier import Classifier
from relpos.models.roll import FrameTransformer
from relpos.models.seq2seq import Seq2Seq
from relpos.models.transformer import Stack, Transformer

__all__ = ["Classifier", "FrameTransformer", "Seq2Seq", "Stack", "Transformer"]
