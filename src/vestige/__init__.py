"""vestige: what training leaves behind in a model."""

__version__ = "0.1.0"
