"""lowbit: make trained PyTorch networks low-bit, and prove what each change costs and buys."""

__version__ = "0.1.0"
