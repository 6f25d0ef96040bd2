"""Ready networks made of mixers."""

from relpos.models.classifier import Classifier
from relpos.models.gmlp import GMLP
from relpos.models.macs import macs
from relpos.models.posmlp import PosMLP, posmlp
from relpos.models.roll import FrameTransformer
from relpos.models.seq2seq import Seq2Seq
from relpos.models.timm_models import register_with_timm
from relpos.models.transfer import Transferred, transfer
from relpos.models.transformer import Stack, Transformer
from relpos.models.vit import ViT

__all__ = [
    "GMLP",
    "Classifier",
    "FrameTransformer",
    "PosMLP",
    "Seq2Seq",
    "Stack",
    "Transferred",
    "Transformer",
    "ViT",
    "macs",
    "posmlp",
    "register_with_timm",
    "transfer",
]
