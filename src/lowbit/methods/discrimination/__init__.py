"""Features as bits: which threshold keeps classes apart, and whether it is worth it on this data (arXiv 2504.13792)."""
