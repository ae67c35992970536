"""What a prompt is made of besides its question: files, folders, documents and web pages.

Public modules: `documents` and `prompt_sources`.
"""
