"""The published methods, each a function from a plain module to a plain module and a frozen dataclass."""
