"""Start, watch and restart the workers of a training job."""
