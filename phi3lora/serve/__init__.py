"""Doors for programs: OpenAI's protocol, and the operations behind endpoints and MCP tools."""
