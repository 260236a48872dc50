"""Code interpreter: the agent writes Python, a sandbox runs it, the agent answers from what came back."""
