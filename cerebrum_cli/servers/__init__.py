"""The engine on servers: token ids or messages go out, events come back.

Public modules: `endpoint` and `remote_engine`.
"""
