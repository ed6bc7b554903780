"""Watermarks: whose model it is, told by what training left in it."""

from vestige.watermarks.encoding import Decoder, Encoded, Encoder, Encoding
from vestige.watermarks.keys import Key

__all__ = ["Decoder", "Encoded", "Encoder", "Encoding", "Key"]
