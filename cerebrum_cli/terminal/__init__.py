"""Screens and keyboards: the only room that knows them."""
