"""Training on tiles whose gradient is the whole image's: samples, loss, the loop, validation, report."""
