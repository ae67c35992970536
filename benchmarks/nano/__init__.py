"""A model of a few layers that does small sums, mostly right: how it is made, and how often it is right."""
