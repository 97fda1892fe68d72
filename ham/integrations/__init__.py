"""HAM in trainers that create the optimizer themselves; each module needs the trainer's own package."""
