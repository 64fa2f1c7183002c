"""Worked examples: each folder prepares one kind of data, describes a network for it and trains it."""
