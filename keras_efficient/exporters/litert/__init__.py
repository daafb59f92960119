"""Export to LiteRT and run the result."""
