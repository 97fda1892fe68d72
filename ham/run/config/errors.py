"""Configuration errors: one line that says what is wrong and names the cure."""


class ConfigError(Exception):
    """A configuration that cannot run; the message is one line and names the cure."""
