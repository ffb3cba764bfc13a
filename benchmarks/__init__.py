"""Rivals and ourselves, measured side by side."""
