"""Pictures of questions: recognized, read from files and messages, and read again whenever they are sent.

Public module: `picture_files`.
"""
