"""Speculative decoding: drafts copied from the prompt and from other samples, verified by the sampler."""
