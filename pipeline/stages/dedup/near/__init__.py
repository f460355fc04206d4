"""Method `near`: pictures that look alike, by their hashes."""
