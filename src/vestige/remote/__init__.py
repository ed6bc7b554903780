"""Targets that one can only ask, over HTTP."""

from vestige.remote.mapping import Decode, Encode, JsonAnswers, JsonInputs, in_order
from vestige.remote.model import KEYS, Backoff, RemoteModel, remote_of

__all__ = [
    "KEYS",
    "Backoff",
    "Decode",
    "Encode",
    "JsonAnswers",
    "JsonInputs",
    "RemoteModel",
    "in_order",
    "remote_of",
]
