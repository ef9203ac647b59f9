"""Proof that the same inputs give what the upstream implementation gave: entry points, comparison and report."""
