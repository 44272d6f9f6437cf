"""Exact tiled inference of fully convolutional networks on images too large for memory."""
