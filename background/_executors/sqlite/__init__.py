"""Calls in a file: they run even if the program that made them is killed."""
