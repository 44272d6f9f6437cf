"""Tensors: loading networks, their graphs, receptive fields and built-in architectures."""
