"""Hugging Face models: attention through transformers' own interfaces, in training and packed. Needs `transformers`.

No model's code is touched. Its attention and its masks arrive at functions of ours, which transformers knows by name.
"""

from attnserve.models.huggingface.checkpoint import HuggingFaceError as HuggingFaceError
from attnserve.models.huggingface.checkpoint import load as load
from attnserve.models.huggingface.inspection import Inspection as Inspection
from attnserve.models.huggingface.inspection import inspect as inspect
from attnserve.models.huggingface.interface import register as register
from attnserve.models.huggingface.packed import PackedModel as PackedModel
from attnserve.models.huggingface.settings import Settings as Settings
from attnserve.models.huggingface.training import configure as configure
from attnserve.models.huggingface.training import save as save
