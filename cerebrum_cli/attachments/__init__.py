"""What a prompt is made of besides its question: files, folders, documents and web pages.

Public module: `prompt_sources`.
"""
