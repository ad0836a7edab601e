"""The sections of a pilot file that say what a method does with a variant, a module each."""
