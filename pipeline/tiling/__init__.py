"""Integers only: which pixels each tile reads, which it writes, and what a plan holds. Standard library alone."""
