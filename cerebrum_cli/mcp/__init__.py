"""Functions of MCP servers, which are programs or have a URL.

Public module: `mcp_servers`.
"""
