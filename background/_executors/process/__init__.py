"""Calls in processes of their own: for what computes."""
