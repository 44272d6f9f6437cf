"""Bytes: images in, OME-Zarr out."""
