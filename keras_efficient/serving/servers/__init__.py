"""What serves a version: TensorFlow Serving, requests to it, and a quick look."""
