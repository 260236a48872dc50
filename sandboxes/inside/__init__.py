"""What runs inside: the worker process of a sandbox and its child, which is the program. Standard library only."""
