"""Callbacks for trainers; each module needs the trainer's own package, `import pruning` does not."""
