"""What a training run did, on one page: curves, scores, examples."""
