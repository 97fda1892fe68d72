"""The experiment layer: a configuration becomes a run, a run becomes a summary."""
