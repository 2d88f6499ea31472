"""Small foundations with random weights in the hub's format, written by code: the paper's families without their downloads."""
