"""One trial: its settings and data, how it trains, what must survive of it, and the worker that runs it."""
