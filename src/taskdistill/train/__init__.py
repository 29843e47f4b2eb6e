"""Training: objectives, the step, the loop, checkpoints and averaging."""
