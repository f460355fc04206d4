"""Method `contamination`: pictures that look like one of a benchmark."""
