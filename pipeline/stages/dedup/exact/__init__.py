"""Method `exact`: the same URL, caption or file, as sketch, resolve and mark."""
