"""A real tritonserver on a machine without GPU or Docker, with a stand-in for the vLLM engine."""
