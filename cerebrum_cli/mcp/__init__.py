"""Optional: functions of MCP servers, programs that this one starts and talks to over their standard streams.

Public module: `extension`.
"""
