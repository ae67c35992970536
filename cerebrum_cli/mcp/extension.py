"""What finds the functions of MCP servers."""

from cerebrum_cli.cli import Extension

EXTENSION = Extension(open_servers="cerebrum_cli.mcp.mcp_servers:open_servers")
