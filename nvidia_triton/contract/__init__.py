"""What this service expects of a Triton server with a vLLM model, checked by small requests: `__main__.py`."""
