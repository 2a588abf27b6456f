"""Environment over YAML over defaults becomes one frozen `Config`, or a list of every problem."""
