"""Start the workers of a job, on this machine or through an engine. Imports no TensorFlow."""
