"""A service of attnserve, from Python: predictions, attention as arrays, captures, uploads and exports."""

from attnserve.client.answers import (
    Candidate,
    Continuation,
    Generated,
    Model,
    Predicted,
    Prediction,
    Token,
)
from attnserve.client.attention import Attention
from attnserve.client.capture import Capture, QueriesAndKeys
from attnserve.client.client import Client
from attnserve.client.publishing import Export, ExportError, Progress
from attnserve.push import Pushed
from attnserve.remote import RemoteError

__all__ = [
    "Attention",
    "Candidate",
    "Capture",
    "Client",
    "Continuation",
    "Export",
    "ExportError",
    "Generated",
    "Model",
    "Predicted",
    "Prediction",
    "Progress",
    "Pushed",
    "QueriesAndKeys",
    "RemoteError",
    "Token",
]
