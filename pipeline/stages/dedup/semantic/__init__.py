"""Method semantic: samples whose embeddings lie close to each other. Imports nothing."""
