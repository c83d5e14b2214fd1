"""Where hosts come from (base.py says what a provider is), and how Triton gets onto one."""
