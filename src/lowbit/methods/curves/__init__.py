"""Curve outputs: a regression output as a point on a path, so that 8-bit outputs carry 10 to 11 bits."""
