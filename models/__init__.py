"""PyTorch: the variants, the transformer around them, checkpoints and recipes. Knows no ONNX and no HTTP."""

from attnserve.models.attention.layer import Attention as Attention
from attnserve.models.attention.layer import AttentionConfig as AttentionConfig
from attnserve.models.checkpoint import load_checkpoint as load_checkpoint
from attnserve.models.checkpoint import save_checkpoint as save_checkpoint
from attnserve.models.config import TransformerConfig as TransformerConfig
from attnserve.models.config import layers_of as layers_of
from attnserve.models.transformer import Transformer as Transformer
