"""Checkpoint to bundle: the only place where torch and onnx meet."""

from attnserve.export.job import export_checkpoint as export_checkpoint
from attnserve.export.job import export_module as export_module
from attnserve.export.twin import place_twins as place_twins
