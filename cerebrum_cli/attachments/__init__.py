"""What a prompt is made of besides its question: files, folders, documents, pictures and web pages.

Public modules: `prompt_sources`, `picture_files`.
"""
