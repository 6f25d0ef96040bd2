"""Ready networks made of mixers."""

from relpos.models.classifier import Classifier
from relpos.models.macs import macs
from relpos.models.roll import FrameTransformer
from relpos.models.seq2seq import Seq2Seq
from relpos.models.transformer import Stack, Transformer
from relpos.models.vit import ViT

__all__ = ["Classifier", "FrameTransformer", "Seq2Seq", "Stack", "Transformer", "ViT", "macs"]
