"""Any MCP server as an environment: its tools, and a task file of prompts and checks."""
